"""One image: from a file of any supported format to upright RGB, and then to what a packed data set stores."""

import contextlib
import ctypes
import functools
import io
import math
import warnings
from collections.abc import Generator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImagePalette, UnidentifiedImageError

from pipelines import tiff
from pipelines.errors import ImageError, UserError
from pipelines.pixels import dark, png_top, scaled, without_alpha
from pipelines.signatures import (
    PNG,
    jpeg_end,
    jpeg_frame,
    kind_of,
    png_depth,
    png_essentials,
    png_significant_bits,
)

__all__ = [
    "DEFAULT_QUALITY",
    "TURBOJPEG",
    "ImageError",
    "PackingRecipe",
    "Sample",
    "decode",
    "pillow_silenced",
    "prepare",
    "prepare_counted",
    "upright_rgb",
]

DEFAULT_QUALITY = 90  # of images that have to be encoded; ffcv's own default
TURBOJPEG = "libturbojpeg.so.0"  # the library that checks JPEG files

# Recognised by content, not by suffix. None that starts a program (EPS) or that has no pixels of its own (SVG).
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
_REMEDY = "convert it to PNG or JPEG"
_UNKNOWN = "is not an image of a known format"
_ORIENTATION = 0x0112
_COLOUR_MAP = 320
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Sample(NamedTuple):
    """An image as a packed data set stores it."""

    height: int
    width: int
    jpeg: bool  # data is a JPEG file; else RGB pixels, uint8 [height, width, 3] in C order
    data: bytes


class _Decoded(NamedTuple):
    image: Image.Image  # upright, RGB
    storable: bool  # see ``decode``
    changes: list[str]


class PackingRecipe(NamedTuple):
    """How images become samples."""

    max_resolution: int | None  # longest side in pixels; larger images are scaled down
    quality: int | None  # every image is encoded as a JPEG of this quality, 1..100; None: whatever loses the least
    raw_pixels: int  # without a quality, images of at most this many pixels are stored as pixels
    max_side: int  # longest side in pixels that the format can hold
    keep_small_jpegs: bool = False  # JPEG files keep their bytes even where raw_pixels says otherwise


def prepare(source: bytes | np.ndarray, recipe: PackingRecipe) -> Sample:
    """Make a sample from an image file's content or from pixels, uint8 [H, W, 3].

    A JPEG file that needs no change keeps its bytes.

    Raises:
        ImageError: the image cannot be used.
        UserError: TurboJPEG is not installed, so a JPEG file that would keep its bytes cannot be checked.
    """
    return prepare_counted(source, recipe)[0]


def prepare_counted(source: bytes | np.ndarray, recipe: PackingRecipe) -> tuple[Sample, list[str]]:
    """``prepare``, with the ways in which the picture differs from its file, in a few words each."""
    if isinstance(source, bytes):
        found = _decode_huge(source, recipe.max_resolution) or _decode(source)
    else:
        found = _Decoded(Image.fromarray(source), False, [])
    image, storable, changes = found
    scale = (recipe.max_resolution or math.inf) / max(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image, storable = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0), False
        changes.append("scaled down")
    width, height = image.size
    if max(width, height) > recipe.max_side:
        raise ImageError(f"has {width} x {height} pixels, more than {recipe.max_side:,} a side: give --max-resolution")
    if recipe.quality is None:
        small = width * height <= recipe.raw_pixels
        if storable and isinstance(source, bytes) and (recipe.keep_small_jpegs or not small):
            end = jpeg_end(source)
            if end < len(source):
                changes.append("JPEG cut at its end, what followed left out")
            return Sample(height, width, True, source[:end]), changes
        if small:
            return Sample(height, width, False, image.tobytes()), changes
    is_whole_jpeg = isinstance(source, bytes) and source.startswith(b"\xff\xd8") and scale >= 1
    if recipe.quality is None and is_whole_jpeg and _load_turbojpeg(TURBOJPEG) is None:
        raise UserError(
            f"JPEG files can keep their bytes only with {TURBOJPEG}: install libturbojpeg0 or give --quality"
        )
    if is_whole_jpeg:
        changes.append("JPEG encoded anew")
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=recipe.quality or DEFAULT_QUALITY)
    return Sample(height, width, True, encoded.getvalue()), changes


def decode(data: bytes) -> tuple[Image.Image, bool]:
    """Decode an image file completely.

    Gray, palette and CMYK images become RGB, 16-bit images are scaled to 8 bits by the range that the file declares,
    transparent images are laid on white (an alpha channel that is 0 everywhere is none), the EXIF orientation is
    applied; the first frame of an animation is used. Colour profiles are ignored.

    Returns:
        The upright RGB image, and whether ``data`` can be stored for it: an undamaged JPEG file of one or three
        components that every libjpeg-turbo decodes without a warning, and that needs no rotation.

    Raises:
        ImageError: not an image, incomplete or damaged, of more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels, of more
            than three channels apart from alpha, or of 16 bits with neither a declared nor a plausible range.
    """
    return _decode(data)[:2]


def upright_rgb(image: Image.Image) -> Image.Image:
    """Convert an image that Pillow has opened or made, as ``decode`` converts a file.

    Raises:
        ImageError: its file is incomplete or damaged, or its pixels have no fixed range.
    """
    with _refusing():
        tags = _sound_tags(image)
        image.load()
        if tags is None:
            return _turn(_to_rgb(image, None, []), _orientation(image))
        rgb = _to_rgb(image, tiff.declared_top(tags), [], tiff.is_inverted(tags), tiff.is_deep(tags))
        return _turn(rgb, _orientation(image))


@contextlib.contextmanager
def pillow_silenced() -> Generator[None]:
    """Hide Pillow's warnings about odd files. The filters belong to the whole process: enter it around threads, not on
    each.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextlib.contextmanager
def _refusing() -> Generator[None]:
    """Whatever goes wrong becomes an ``ImageError``."""
    try:
        yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_large() from None
    except ImageError:
        raise
    except Exception as error:  # on damaged data a decoder can raise any error
        raise ImageError(f"cannot be decoded: {error}") from error


def _too_large() -> ImageError:
    return ImageError(
        f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels: give --max-resolution if it is a JPEG, "
        "or scale it down first"
    )


def _decode(data: bytes) -> _Decoded:
    if not data:
        raise ImageError("is empty (0 bytes)")
    with _refusing():
        try:
            return _decode_file(data)
        except Exception:
            frame = jpeg_frame(data) if data.startswith(b"\xff\xd8") else None
            if frame is not None and frame.unread:
                raise ImageError(f"{frame.unread}, which is not read: {_REMEDY}") from None
            if not data.startswith(PNG):
                raise
            essentials = png_essentials(data)  # what accompanies the picture may be too long, or damaged
            if essentials == data:
                raise
            return _decode_file(essentials)


def _decode_huge(data: bytes, longest: int | None) -> _Decoded | None:
    """A JPEG file of too many pixels at a half, a quarter or an eighth of its size: the smallest not below ``longest``.

    Returns:
        None: another file, or none of these scales has few enough pixels.
    """
    most = Image.MAX_IMAGE_PIXELS
    frame = jpeg_frame(data) if longest and most and data.startswith(b"\xff\xd8") else None
    if frame is None or longest is None or most is None or frame.height * frame.width <= most:
        return None
    divisor = next((n for n in (8, 4, 2) if max(frame.height, frame.width) / n >= longest), 2)
    height, width = -(-frame.height // divisor), -(-frame.width // divisor)
    if frame.unread or frame.components == 4 or height * width > most:
        return None
    with _refusing():
        pixels = _decode_jpeg(data, height, width)
        if pixels is None:
            return None
        return _Decoded(_turn(Image.fromarray(pixels), frame.orientation), False, [])


def _decode_file(data: bytes) -> _Decoded:
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        return _decode_unknown(data)
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise _too_large()  # Pillow only warns, until twice as many
    pixels, top, changes = None, None, []
    tags = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    if tags is not None and (plain := tiff.read_plain16(data, tags)) is not None:
        return _from_16_bits(*plain, tags)
    _sound_tags(image)
    if _has_more(image, data):
        changes.append("first of several frames or pages")
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):  # MPO: a JPEG followed by further frames
        pixels = _decode_jpeg(data, image.height, image.width)
    if tags is not None:
        top = tiff.declared_top(tags)
    elif image.format == "PPM":
        top = 65535  # Pillow scales by the largest value that the file declares
    deep = image.format == "PNG" and png_depth(data) == 16
    if pixels is None:
        image.load()
    orientation = _orientation(image)  # after load, which already rotates TIFF files
    if orientation in _UPRIGHT:
        changes.append("turned upright")
    if pixels is not None:
        return _Decoded(_turn(Image.fromarray(pixels), orientation), orientation not in _UPRIGHT, changes)
    if deep:
        top = png_top(image, png_significant_bits(data))
    deep = deep or (tags is not None and tiff.is_deep(tags))
    inverted = tags is not None and tiff.is_inverted(tags)
    return _Decoded(_turn(_to_rgb(image, top, changes, inverted, deep), orientation), False, changes)


def _has_more(image: Image.Image, data: bytes) -> bool:
    """Whether frames or pages follow the first; the image stays as it is. What follows a JPEG is not counted."""
    if image.format == "GIF":
        return bool(getattr(Image.open(io.BytesIO(data), formats=("GIF",)), "is_animated", False))
    if image.format == "TIFF":
        return bool(image.tag_v2.next)  # type: ignore[attr-defined]
    return image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1


def _decode_unknown(data: bytes) -> _Decoded:
    """A file that Pillow does not know. Raises ``ImageError`` that says what it is, unless it can be read here."""
    if data.startswith(tiff.TIFF_STARTS):
        try:
            tags = tiff.tags_of_file(data)
        except Exception:
            tags = {}
        if not tags:
            raise ImageError("is a damaged TIFF: its tags cannot be read")
        if (plain := tiff.read_plain16(data, tags)) is not None:
            return _from_16_bits(*plain, tags)
        raise ImageError(tiff.unread(tags))
    kind = "a damaged PNG" if data.startswith(PNG) else kind_of(data)
    if kind is None:
        raise ImageError(_UNKNOWN)
    raise ImageError(f"{_UNKNOWN}, but {kind}" + ("" if ":" in kind else f": {_REMEDY}"))


def _from_16_bits(values: np.ndarray, orientation: int, tags: tiff.Tags) -> _Decoded:
    tiff.refuse_channels(tags)
    colours = 3 if values.shape[-1] >= 3 else 1
    gray = scaled(values[..., :colours], tiff.declared_top(tags))
    gray = 255 - gray if tiff.is_inverted(tags) else gray
    changes = ["16 bits scaled to 8"] + ["turned upright"] * (orientation in _UPRIGHT)
    image = Image.fromarray(np.broadcast_to(gray, (*gray.shape[:2], 3)).copy())
    if values.shape[-1] > colours:
        image.putalpha(Image.fromarray((values[..., colours] // 257).astype(np.uint8)))
    return _Decoded(_turn(without_alpha(image, True, changes), orientation), False, changes)


def _sound_tags(image: Image.Image) -> tiff.Tags | None:
    """The tags of a TIFF that Pillow reads rightly; None: another format. Raises ``ImageError`` if it does not."""
    tags = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    if tags is not None:
        tiff.refuse_unsound(tags)
        entries = tags.get(_COLOUR_MAP, ())
        if image.mode == "P" and entries and max(entries) < 256:  # 8 bits where the format wants 16
            image.palette = ImagePalette.raw("RGB;L", bytes(entries))
    return tags


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the pixels may be sound even if the EXIF data are damaged
        return 1


def _to_rgb(
    image: Image.Image, top: int | None, changes: list[str], inverted: bool = False, deep: bool = False
) -> Image.Image:
    """Convert to RGB and list how in ``changes``.

    Args:
        top: the largest value that a 16-bit sample can have; None: not declared.
        inverted: 0 is white, which Pillow handles up to 8 bits.
        deep: the file has 16 bits per sample, even where Pillow has kept 8.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ImageError("has 32-bit pixels, which have no fixed range: make it 8 or 16 bits")
    if image.mode.startswith("I"):
        gray = scaled(np.asarray(image), top)
        image = Image.fromarray(255 - gray if inverted else gray)
        changes.append("16 bits scaled to 8")
    elif deep:
        bands = image.split()[: 1 if image.mode.startswith("L") else 3]
        if top is None and max(int(np.max(np.asarray(band), initial=0)) for band in bands) < 16:
            raise dark("at most 4095")
        changes.append("16 bits scaled to 8")
    if image.has_transparency_data:
        return without_alpha(image.convert("RGBA"), image.format == "TIFF", changes)
    if image.mode not in ("RGB", "L", "1"):
        changes.append({"P": "palette", "RGBX": "RGB"}.get(image.mode, image.mode) + " to RGB")
    return image.convert("RGB")


@functools.cache
def _load_turbojpeg(name: str) -> ctypes.CDLL | None:
    """The library, or None if it is not installed."""
    try:
        library = ctypes.CDLL(name)
    except OSError:
        return None
    handle, number = ctypes.c_void_p, ctypes.c_int
    library.tjInitDecompress.restype = handle
    library.tjDecompress2.argtypes = [handle, ctypes.c_char_p, ctypes.c_ulong, handle, *[number] * 5]
    library.tjGetErrorStr2.argtypes, library.tjGetErrorStr2.restype = [handle], ctypes.c_char_p
    library.tjDestroy.argtypes = [handle]
    return library


def _decode_jpeg(data: bytes, height: int, width: int) -> np.ndarray | None:
    """Decode with TurboJPEG, the decoder inside ffcv, which reports damage where Pillow silently fills in pixels.

    Returns:
        uint8 [height, width, 3], or None if TurboJPEG is not installed or cannot decode the file as it is.
    """
    library = _load_turbojpeg(TURBOJPEG)
    if library is None:
        return None
    pixels = np.empty((height, width, 3), np.uint8)
    handle = library.tjInitDecompress()
    try:
        if library.tjDecompress2(handle, data, len(data), pixels.ctypes.data, width, 0, height, 0, 0) == 0:
            return pixels
        message = library.tjGetErrorStr2(handle).decode()
    finally:
        library.tjDestroy(handle)
    if message.startswith(("Corrupt JPEG data", "Premature end")):
        raise ImageError(f"is damaged or incomplete: {message}")
    return None
