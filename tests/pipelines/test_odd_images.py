"""Pictures that decoders often read wrongly: the pixels that their format defines, or one line that says why not."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipelines.images import ImageError, PackingRecipe, decode, prepare, prepare_counted

H, W = 6, 8
RGB = np.random.default_rng(0).integers(0, 256, (H, W, 3)).astype(np.uint8)
RAMP = np.linspace(0, 65535, H * W).reshape(H, W).astype(np.uint16)
RAMP8 = np.round(RAMP / 257).astype(np.uint8)
TWELVE = (RAMP >> 4).astype(np.uint16)
TWELVE8 = ((TWELVE.astype(int) * 255 + 2047) // 4095).astype(np.uint8)
KEEP = PackingRecipe(max_resolution=None, quality=None, raw_pixels=0, max_side=65_500)


def tiff(strips, bits=16, photometric=1, samples=1, order="<", **tags) -> bytes:
    """A TIFF of 6 x 8 pixels, by hand. ``tags``: further values of type SHORT by number, as ``t338=2``."""
    offsets, at = [], 8
    for strip in strips:
        offsets.append(at)
        at += len(strip)
    entries = {256: [W], 257: [H], 258: [bits] * samples, 259: [1], 262: [photometric], 273: offsets, 277: [samples]}
    entries |= {278: [H], 279: [len(strip) for strip in strips]}
    entries |= {int(name[1:]): value if isinstance(value, list) else [value] for name, value in tags.items()}
    body, tail, table = b"".join(strips), b"", b""
    body += b"\0" * (len(body) % 2)
    behind = 8 + len(body) + 2 + 12 * len(entries) + 4
    for tag, values in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}H", *values)
        if len(packed) > 4:
            packed, tail = struct.pack(order + "I", behind + len(tail)), tail + packed
        table += struct.pack(order + "HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8 + len(body))
    return start + body + struct.pack(order + "H", len(entries)) + table + bytes(4) + tail


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(values: np.ndarray, more: bytes = b"") -> bytes:
    kind = {1: 0, 3: 2}[1 if values.ndim == 2 else 3]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def encoded(pixels: np.ndarray, format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode(data)[0]).astype(int)


def gray(data: bytes) -> np.ndarray:
    found = pixels(data)
    assert (found == found[..., :1]).all()
    return found[..., 0]


def u16(values: np.ndarray, order="<") -> bytes:
    return values.astype(order + "u2").tobytes()


def bmp(alpha: np.ndarray, version: int) -> bytes:
    data = np.dstack([RGB[..., ::-1], alpha])[::-1].tobytes()
    size = {4: 108, 5: 124}[version]
    head = struct.pack("<IiiHHIIiiII", size, W, H, 1, 32, 3, len(data), 2835, 2835, 0, 0)
    head = (head + struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)).ljust(size, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + size + len(data), 0, 0, 14 + size) + head + data


# Range and photometric interpretation


@pytest.mark.parametrize("order", "<>")
def test_zero_is_white_in_16_bits(order):
    assert (gray(tiff([u16(RAMP, order)], photometric=0, order=order)) == 255 - RAMP8).all()


def test_zero_is_white_in_16_compressed_bits():
    data = tiff([zlib.compress(u16(RAMP))], photometric=0, t259=8)
    assert (gray(data) == 255 - RAMP8).all()


def test_zero_is_white_in_8_bits():
    assert (gray(tiff([RGB[..., 0].tobytes()], bits=8, photometric=0)) == 255 - RGB[..., 0].astype(int)).all()


def test_twelve_bits_are_packed():
    a, b = TWELVE.reshape(-1, 2).astype(np.uint32).T
    packed = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], -1).astype(np.uint8)
    assert (gray(tiff([packed.tobytes()], bits=12)) == TWELVE8).all()


@pytest.mark.parametrize("photometric", [0, 1])
def test_a_declared_range_is_used(photometric):
    want = TWELVE8 if photometric == 1 else 255 - TWELVE8
    assert (gray(tiff([u16(TWELVE)], photometric=photometric, t281=4095)) == want).all()


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("order", "<>")
def test_a_declared_range_of_colours(planes, order):
    values = TWELVE[..., None] // np.array([1, 2, 4])
    strips = [u16(values, order)] if planes == 1 else [u16(values[..., c], order) for c in range(3)]
    data = tiff(strips, photometric=2, samples=3, order=order, t284=planes, t281=[4095] * 3)
    assert (pixels(data) == (values.astype(int) * 255 + 2047) // 4095).all()


def test_more_than_the_declared_range_is_refused():
    with pytest.raises(ImageError, match="declares values up to 4095 and has 65535: make it 8 bits"):
        decode(tiff([u16(RAMP)], t281=4095))


@pytest.mark.parametrize(
    "data",
    [
        tiff([u16(TWELVE)]),
        tiff([u16(TWELVE)], photometric=0),
        png16(TWELVE),
        png16(np.dstack([TWELVE] * 3)),
        tiff([u16(np.dstack([TWELVE] * 3))], photometric=2, samples=3),
        tiff([u16(TWELVE)] * 3, photometric=2, samples=3, t284=2),
    ],
)
def test_an_undeclared_range_that_is_hardly_used_is_refused(data):
    with pytest.raises(
        ImageError, match=r"16-bit values of .* under a sixteenth of their range, and declares no other"
    ):
        decode(data)


def test_black_is_black():
    assert (gray(png16(np.zeros((H, W), np.uint16))) == 0).all()


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_significant_bits_of_a_png(bits):
    values = RAMP >> (16 - bits)
    want = np.floor(values / (2**bits - 1) * 255 + 0.5)
    assert np.abs(gray(png16(values, chunk(b"sBIT", bytes([bits])))) - want).max() <= 1
    whole = (values << (16 - bits)) | (values >> (2 * bits - 16))  # as the format wants them
    assert np.abs(gray(png16(whole, chunk(b"sBIT", bytes([bits])))) - want).max() <= 1


@pytest.mark.parametrize("top", [100, 1023, 4095, 65535])
def test_a_pgm_declares_its_range(top):
    values = np.linspace(0, min(top, 3000), H * W).astype(np.uint16)
    body = values.astype(">u2" if top > 255 else "u1").tobytes()
    found = gray(b"P5 %d %d %d\n" % (W, H, top) + body)
    assert np.abs(found.ravel() - values.astype(float) * 255 / top).max() <= 1


# Planes, palettes, sample formats, channels


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("alpha", [False, True])
def test_planes_of_16_bits(order, alpha):
    planes = [u16(RGB[..., c].astype(np.uint16) * 257, order) for c in range(3)]
    more = {"t338": 2} if alpha else {}
    planes += [u16(np.full((H, W), 65535), order)] if alpha else []
    assert (pixels(tiff(planes, photometric=2, samples=3 + alpha, order=order, t284=2, **more)) == RGB).all()


def test_planes_of_8_bits():
    planes = [RGB[..., c].tobytes() for c in range(3)]
    assert (pixels(tiff(planes, bits=8, photometric=2, samples=3, t284=2)) == RGB).all()


def test_planes_that_end_too_early_are_refused():
    planes = [u16(RGB[..., c])[:-2] for c in range(3)]
    with pytest.raises(ImageError, match="incomplete: its strips end too early"):
        decode(tiff(planes, photometric=2, samples=3, t284=2))


@pytest.mark.parametrize("unit", [1, 257])
def test_palettes_of_8_and_16_bits(unit):
    colours = [channel * unit for channel in [*range(256), *range(255, -1, -1), *[7] * 256]]
    index = np.arange(H * W).reshape(H, W)
    want = np.dstack([index, 255 - index, np.full_like(index, 7)])
    assert (pixels(tiff([index.astype(np.uint8).tobytes()], bits=8, photometric=3, t320=colours)) == want).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiff([RGB[..., 0].tobytes()], bits=8, t339=2), "TIFF of signed 8-bit values, which have no fixed range"),
        (tiff([u16(RAMP)], t339=2), "TIFF of signed 16-bit values, which have no fixed range"),
        (tiff([u16(RAMP)], t339=3), r"TIFF of 1 x 16 bits \(floating-point"),
        (tiff([bytes(H * W * 26)], samples=13), "TIFF of 13 x 16 bits"),
        (tiff([bytes(H * W * 6)], samples=3), "TIFF of 3 x 16 bits"),
        (tiff([bytes(H * W * 2)], bits=8, samples=2, t338=0), "TIFF of 2 channels, 1 of them neither colour nor alpha"),
        (tiff([bytes(H * W * 4)], bits=8, photometric=2, samples=4, t338=0), "TIFF of 4 channels, 1 of them neither"),
        (tiff([bytes(H * W * 5)], bits=8, photometric=2, samples=5, t338=[2, 0]), "TIFF of 5 channels, 1 of them"),
        (tiff([bytes(H * W)], bits=8, t254=1), "TIFF whose first page is a thumbnail"),
        (tiff([bytes(H * W)], bits=14), "TIFF of 1 x 14 bits"),
        (b"II*\0\xff\xff\xff\xff", "damaged TIFF"),
    ],
)
def test_a_tiff_of_another_kind_is_named(data, message):
    with pytest.raises(ImageError, match=message):
        decode(data)


# Alpha


@pytest.mark.parametrize("version", [4, 5])
def test_a_bitmap_whose_alpha_is_empty(version):
    assert (pixels(bmp(np.zeros((H, W), np.uint8), version)) == RGB).all()
    half = np.where(np.arange(W) < 4, 255, 0).astype(np.uint8) + np.zeros((H, 1), np.uint8)
    found = pixels(bmp(half, version))
    assert (found[:, :4] == RGB[:, :4]).all() and (found[:, 4:] == 255).all()


@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})]
)
def test_alpha_that_is_empty_everywhere_is_none(format, options):
    clear = np.dstack([RGB, np.zeros((H, W), np.uint8)])
    assert (pixels(encoded(clear, format, **options)) == RGB).all()
    assert "empty alpha left out" in prepare_counted(encoded(clear, format, **options), KEEP)[1]


@pytest.mark.parametrize("nir", [60, None])
def test_near_infrared_as_alpha_is_refused(nir):
    band = np.full((H, W), nir, np.uint8) if nir else RGB[..., 1]
    data = tiff([np.dstack([RGB, band]).tobytes()], bits=8, photometric=2, samples=4, t338=2)
    with pytest.raises(ImageError, match="mostly neither clear nor opaque, as near infrared is: save it without"):
        decode(data)


# What accompanies the picture


@pytest.mark.parametrize(
    "more",
    [
        chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(2_000_000))),
        chunk(b"iTXt", b"note\0\1\0\0\0" + zlib.compress(bytes(2_000_000))),
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2_000_000))),
        chunk(b"tEXt", b"note\0" + b"x" * 2_000_000),
        chunk(b"pHYs", bytes(9))[:-4] + b"\1\2\3\4",
        chunk(b"tIME", bytes(7))[:-4] + b"\1\2\3\4",
    ],
)
def test_long_texts_and_wrong_checksums_beside_the_picture(more):
    data = encoded(RGB)
    assert (pixels(data[:33] + more + data[33:]) == RGB).all()


def test_a_wrong_checksum_of_the_picture_is_refused():
    data = bytearray(encoded(RGB))
    data[data.index(b"IDAT") + 20] ^= 1
    with pytest.raises(ImageError):
        decode(bytes(data))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("behind", [b"\0" * 5000, b"\0\0\0\x18ftypmp42" + b"\xff\xd9" * 100, b"\n"])
def test_what_follows_a_jpeg_is_not_packed(progressive, behind):
    thumbnail = encoded(RGB, "JPEG")
    exif = Image.Exif()
    exif[0x0131] = thumbnail  # holds an end marker of its own
    data = encoded(np.kron(RGB, np.ones((9, 9, 1), np.uint8)), "JPEG", progressive=progressive, exif=exif)
    assert prepare(data, KEEP).data == data
    sample, changes = prepare_counted(data + behind, KEEP)
    assert sample.data == data and changes == ["JPEG cut at its end, what followed left out"]


def test_only_the_first_of_several_pages_is_read_and_counted():
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    for format in ("TIFF", "GIF", "WEBP"):
        buffer = io.BytesIO()
        frames[0].save(buffer, format, save_all=True, append_images=frames[1:])
        assert "first of several frames or pages" in prepare_counted(buffer.getvalue(), KEEP)[1]


# Size


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("most", [5000, 2000])
def test_a_jpeg_of_too_many_pixels_is_decoded_at_a_smaller_scale(monkeypatch, orientation, most):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = np.kron(RGB[:2, :3], np.ones((40, 40, 1), np.uint8))  # 80 x 120
    data = encoded(image, "JPEG", quality=95, exif=exif)
    recipe = KEEP._replace(max_resolution=30, raw_pixels=10_000)
    want = np.frombuffer(prepare(data, recipe).data, np.uint8).astype(int)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    sample = prepare(data, recipe)
    assert (sample.height, sample.width) == ((20, 30) if orientation == 1 else (30, 20))
    assert np.abs(np.frombuffer(sample.data, np.uint8) - want).mean() < 8
    with pytest.raises(ImageError, match=f"more than {most:,} pixels: give --max-resolution if it is a JPEG"):
        prepare(data, KEEP)
    with pytest.raises(ImageError, match="pixels: give --max-resolution if it is a JPEG, or scale it down first"):
        prepare(encoded(image), recipe)


# Names of what is refused


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x1cftypavif" + bytes(20), "AVIF"),
        (b"\0\0\0\x1cftypheic" + bytes(20), "HEIC"),
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (bytes(128) + b"DICM" + bytes(20), "DICOM"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b'<?xml version="1.0"?><svg xmlns="">', "SVG"),
        (b"%PDF-1.4", "PDF"),
    ],
)
def test_a_file_of_another_kind_is_named(data, name):
    with pytest.raises(ImageError, match=f"is not an image of a known format, but {name}: convert it to PNG or JPEG"):
        decode(data)


@pytest.mark.parametrize(
    ("data", "remedy"),
    [(b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"), (bytes(100), "fetch it again")],
)
def test_a_file_that_is_not_really_there_is_named(data, remedy):
    with pytest.raises(ImageError, match=f"{remedy}$"):
        decode(data)


@pytest.mark.parametrize(
    ("marker", "bits", "name"), [(0xC1, 12, "a JPEG of 12 bits"), (0xF7, 8, "JPEG-LS"), (0xC3, 8, "a lossless JPEG")]
)
def test_a_jpeg_of_a_rare_kind_is_named(marker, bits, name):
    frame = bytes([0xFF, marker, 0, 11, bits, 0, 8, 0, 8, 1, 1, 0x11, 0])
    with pytest.raises(ImageError, match=f"is {name}, which is not read: convert it"):
        decode(b"\xff\xd8" + frame + bytes(20))
