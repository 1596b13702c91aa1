"""TIFF: what its tags say and Pillow does not ask."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from pipelines.errors import ImageError

__all__ = [
    "TIFF_STARTS",
    "declared_top",
    "is_deep",
    "is_inverted",
    "read_plain16",
    "refuse_channels",
    "refuse_unsound",
    "tags_of_file",
    "unread",
]

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIPS, _ORIENTATION, _SAMPLES, _STRIP_BYTES, _MAX_VALUE, _PLANES = 273, 274, 277, 279, 281, 284
_EXTRA, _SAMPLE_FORMAT = 338, 339
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # channels by photometric interpretation
_FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point"}
_ALPHA = (1, 2)
_REMEDY = "make it 8-bit RGB or gray"

Tags = Mapping[int, Any]


def tags_of_file(data: bytes) -> Tags:
    """The tags of a TIFF file's first page. Raises any error if they are damaged."""
    tags = ImageFileDirectory_v2(data[:16] if data[2:3] == b"+" or data[3:4] == b"+" else data[:8])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    return tags


def refuse_unsound(tags: Tags) -> None:
    """Raise ``ImageError`` for what Pillow would read as something else."""
    bits, samples, _ = _layout(tags)
    kinds = {_FORMATS.get(kind, "undefined") for kind in _several(tags.get(_SAMPLE_FORMAT, 1))} - {"unsigned"}
    if kinds and max(bits) < 32:
        raise ImageError(f"is a TIFF of {min(kinds)} {max(bits)}-bit values, which have no fixed range: {_REMEDY}")
    refuse_channels(tags)
    if tags.get(_SUBFILE, 0) & 1:
        raise ImageError("is a TIFF whose first page is a thumbnail: save the picture alone")
    if samples > 1 and tags.get(_PLANES) == 2 and max(bits) == 16 and tags.get(_COMPRESSION, 1) == 1:
        raise ImageError(f"is a TIFF of 16-bit planes in a form that is not read: {_REMEDY}")
    if samples > 1 and max(bits) == 16 and declared_top(tags) not in (None, 65535):
        raise ImageError(f"is a TIFF of {samples} x 16 bits with a range of its own: {_REMEDY}")


def refuse_channels(tags: Tags) -> None:
    """Raise ``ImageError`` if there are channels besides colour and one of alpha."""
    _, samples, extra = _layout(tags)
    colours = _COLOURS.get(tags.get(_PHOTOMETRIC, 0), samples)
    has_alpha = samples > colours and (not extra or extra[0] in _ALPHA)
    if (others := samples - colours - has_alpha) > 0:
        raise ImageError(f"is a TIFF of {samples} channels, {others} of them neither colour nor alpha: {_REMEDY}")


def unread(tags: Tags) -> str:
    """Why a TIFF that Pillow does not know cannot be used."""
    bits, samples, _ = _layout(tags)
    kind = _FORMATS.get(_several(tags.get(_SAMPLE_FORMAT, 1))[0], "undefined")
    return (
        f"is a TIFF of {samples} x {max(bits)} bits ({kind}, photometric {tags.get(_PHOTOMETRIC, '?')}, "
        f"compression {tags.get(_COMPRESSION, 1)}), a form that is not read: {_REMEDY}"
    )


def declared_top(tags: Tags) -> int | None:
    """The largest value that a sample of 9 to 16 bits can have, as the file declares it; None: it does not."""
    bits = max(_layout(tags)[0])
    if _MAX_VALUE in tags:
        return int(max(_several(tags[_MAX_VALUE]))) or None
    return 2**bits - 1 if 8 < bits < 16 else None


def is_deep(tags: Tags) -> bool:
    """Whether samples have 16 bits."""
    return max(_layout(tags)[0]) == 16


def is_inverted(tags: Tags) -> bool:
    """Whether 0 is white."""
    return tags.get(_PHOTOMETRIC) == 0


def read_plain16(data: bytes, tags: Tags) -> tuple[np.ndarray, int] | None:
    """Samples of 16 bits that are not compressed and that Pillow reads wrongly or with a loss.

    Returns:
        uint16 [H, W, channels] (gray or RGB, perhaps with alpha behind), and the orientation, 1..8; None: not such a
        file.

    Raises:
        ImageError: the file is incomplete.
    """
    bits, samples, _ = _layout(tags)
    photometric, planar = tags.get(_PHOTOMETRIC), samples > 1 and tags.get(_PLANES) == 2
    own_range = samples > 1 and declared_top(tags) not in (None, 65535)
    needed = planar or own_range or (data[:1] == b"M" and photometric == 0)
    plain = set(bits) == {16} and tags.get(_COMPRESSION, 1) == 1 and _STRIPS in tags and tags.get(266, 1) == 1
    if not (needed and plain and photometric in (0, 1, 2)):
        return None
    height, width = tags[_HEIGHT], tags[_WIDTH]
    pieces = zip(_several(tags[_STRIPS]), _several(tags[_STRIP_BYTES]), strict=True)
    raw = b"".join(data[start : start + length] for start, length in pieces)
    if len(raw) < 2 * height * width * samples:
        raise ImageError("is damaged or incomplete: its strips end too early")
    values = np.frombuffer(raw, "<u2" if data[:1] == b"I" else ">u2", height * width * samples).astype(np.uint16)
    if planar:
        return values.reshape(samples, height, width).transpose(1, 2, 0), tags.get(_ORIENTATION, 1)
    return values.reshape(height, width, samples), tags.get(_ORIENTATION, 1)


def _layout(tags: Tags) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
    """Bits per sample, samples per pixel, kinds of the extra samples."""
    bits = _several(tags.get(_BITS, 1))
    return bits, tags.get(_SAMPLES, 1), _several(tags.get(_EXTRA, ()))


def _several(value: Any) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
