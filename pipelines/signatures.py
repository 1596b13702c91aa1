"""What a file is whose pixels cannot be read, by its first bytes; and the parts of PNG and JPEG files."""

import re
import struct
import zlib
from typing import NamedTuple

from PIL import Image

__all__ = [
    "PNG",
    "JpegFrame",
    "jpeg_end",
    "jpeg_frame",
    "kind_of",
    "png_depth",
    "png_essentials",
    "png_significant_bits",
]

PNG = b"\x89PNG\r\n\x1a\n"
_HEIF = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"hevc": "HEIC",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
}
_STARTS = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"8BPS": "a Photoshop file",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"\0\0\1\0": "a Windows icon",
    b"#?RADIANCE": "Radiance HDR",
    b"v/1\1": "OpenEXR",
    b"DDS ": "DDS",
    b"SIMPLE  =": "FITS",
    b"Pf": "a PFM of floating-point values",
    b"PF": "a PFM of floating-point values",
    b"P7": "PAM",
    b"qoif": "QOI",
    b"\0\5\26\7": "what macOS stores beside a file, not a picture",
    b"\x1f\x8b": "compressed by gzip",
    b"PK\3\4": "a ZIP archive",
    b"\x93NUMPY": "a NumPy array",
    b"version https://git-lfs": "a pointer of Git LFS, not the file: run git lfs pull",
    b"\0" * 16: "zeros, as of a download or copy that failed: fetch it again",
}
_NO_LENGTH = frozenset((0x01, *range(0xD0, 0xD8)))
_FRAMES = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
_NEXT_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")


def kind_of(data: bytes) -> str | None:
    """What a file is, as a noun, behind a colon what to do about it; None: its first bytes do not say."""
    if data[4:8] == b"ftyp":
        return _HEIF.get(data[8:12], "a film or another ISO media file")
    if data[128:132] == b"DICM":
        return "DICOM"
    text = data[:256].lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if b"<svg" in text:
        return "SVG"
    return next((kind for start, kind in _STARTS.items() if data.startswith(start)), None)


def png_depth(data: bytes) -> int:
    """Bits per sample of a PNG file."""
    return data[24]


def png_significant_bits(data: bytes) -> int | None:
    """The most bits per sample that the chunk sBIT declares; None: there is none."""
    for name, start, end in _png_chunks(data):
        if name == b"sBIT":
            return max(data[start + 8 : end - 4], default=None)
        if name == b"IDAT":
            return None
    return None


def png_essentials(data: bytes) -> bytes:
    """A PNG file without texts, profiles and ancillary chunks whose checksum is wrong; what is broken stays."""
    kept, done = [PNG], len(PNG)
    for name, start, end in _png_chunks(data):
        is_critical = not name[0] & 0x20
        is_sound = zlib.crc32(data[start + 4 : end - 4]).to_bytes(4, "big") == data[end - 4 : end]
        if is_critical or name == b"tRNS" or (name == b"eXIf" and is_sound):
            kept.append(data[start:end])
        done = end
    return b"".join((*kept, data[done:]))


def _png_chunks(data: bytes) -> list[tuple[bytes, int, int]]:
    """Name, start and end of the whole chunks, the checksum included."""
    chunks, at = [], len(PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        chunks.append((data[at + 4 : at + 8], at, end))
        at = end
    return chunks


class JpegFrame(NamedTuple):
    marker: int  # second byte of the marker SOF
    bits: int  # per sample
    components: int
    height: int  # pixels
    width: int
    orientation: int  # of the EXIF data, 1..8

    @property
    def unread(self) -> str | None:
        """A kind that a decoder may not know, as a reason; None: an ordinary one."""
        if self.marker == 0xF7:
            return "is JPEG-LS"
        if self.marker in (0xC3, 0xC7, 0xCB, 0xCF):
            return "is a lossless JPEG"
        if self.marker in range(0xC9, 0xD0):
            return "is a JPEG with arithmetic coding"
        return f"is a JPEG of {self.bits} bits" if self.bits != 8 else None


def jpeg_frame(data: bytes) -> JpegFrame | None:
    """What the frame header of a JPEG file says; None: none is found."""
    at, orientation = 2, 1
    while (found := _NEXT_MARKER.match(data, at)) is not None:
        marker, at = data[found.end() - 1], found.end()
        if marker in _FRAMES:
            if at + 8 > len(data):
                return None
            bits, height, width, components = struct.unpack(">BHHB", data[at + 2 : at + 8])
            return JpegFrame(marker, bits, components, height, width, orientation)
        if marker == 0xE1 and data[at + 2 : at + 8] == b"Exif\0\0":
            orientation = _orientation(data[at + 2 : at + int.from_bytes(data[at : at + 2], "big")])
        if marker in (0xD9, 0xDA):
            return None
        if marker not in _NO_LENGTH:
            at += int.from_bytes(data[at : at + 2], "big")
    return None


def _orientation(segment: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(segment)
        return int(exif.get(0x0112, 1))
    except Exception:  # the pixels may be sound even if the EXIF data are damaged
        return 1


def jpeg_end(data: bytes) -> int:
    """Where the first picture of a sound JPEG file ends, in bytes; what follows belongs to another program."""
    at = 2
    while (found := _NEXT_MARKER.search(data, at)) is not None:
        marker, at = data[found.end() - 1], found.end()
        if marker == 0xD9:
            return at
        if marker in _NO_LENGTH:
            continue
        at += int.from_bytes(data[at : at + 2], "big")
        if marker == 0xDA and (first := data.find(b"\xff\xd9", at)) == len(data) - 2:
            return first + 2  # the usual file; searching for every marker would take longer
    return len(data)
