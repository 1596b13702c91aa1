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
from PIL import Image, UnidentifiedImageError

from pipelines.errors import UserError

__all__ = [
    "DEFAULT_QUALITY",
    "TURBOJPEG",
    "ImageError",
    "PackingRecipe",
    "Sample",
    "decode",
    "pillow_silenced",
    "prepare",
    "upright_rgb",
]

DEFAULT_QUALITY = 90  # of images that have to be encoded; ffcv's own default
TURBOJPEG = "libturbojpeg.so.0"  # the library that checks JPEG files

# Recognised by content, not by suffix. None that starts a program (EPS) or that has no pixels of its own (SVG).
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(Exception):
    """Why an image cannot be used; the message follows the file's name on the same line."""


class Sample(NamedTuple):
    """An image as a packed data set stores it."""

    height: int
    width: int
    jpeg: bool  # data is a JPEG file; else RGB pixels, uint8 [height, width, 3] in C order
    data: bytes


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
    image, storable = decode(source) if isinstance(source, bytes) else (Image.fromarray(source), False)
    scale = (recipe.max_resolution or math.inf) / max(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image, storable = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0), False
    width, height = image.size
    if max(width, height) > recipe.max_side:
        raise ImageError(f"has {width} x {height} pixels, more than {recipe.max_side:,} a side: give --max-resolution")
    if recipe.quality is None:
        small = width * height <= recipe.raw_pixels
        if storable and isinstance(source, bytes) and (recipe.keep_small_jpegs or not small):
            return Sample(height, width, True, source)
        if small:
            return Sample(height, width, False, image.tobytes())
    is_whole_jpeg = isinstance(source, bytes) and source.startswith(b"\xff\xd8") and scale >= 1
    if recipe.quality is None and is_whole_jpeg and _load_turbojpeg(TURBOJPEG) is None:
        raise UserError(
            f"JPEG files can keep their bytes only with {TURBOJPEG}: install libturbojpeg0 or give --quality"
        )
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=recipe.quality or DEFAULT_QUALITY)
    return Sample(height, width, True, encoded.getvalue())


def decode(data: bytes) -> tuple[Image.Image, bool]:
    """Decode an image file completely.

    Gray, palette and CMYK images become RGB, 16-bit gray is scaled to 8 bits, transparent images are laid on white,
    the EXIF orientation is applied; the first frame of an animation is used. Colour profiles are ignored.

    Returns:
        The upright RGB image, and whether ``data`` can be stored for it: an undamaged JPEG file of one or three
        components that every libjpeg-turbo decodes without a warning, and that needs no rotation.

    Raises:
        ImageError: not an image, incomplete or damaged, or of more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels.
    """
    if not data:
        raise ImageError("is empty (0 bytes)")
    with _refusing():
        return _decode(data)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Convert an image that Pillow has opened or made, as ``decode`` converts a file.

    Raises:
        ImageError: its file is incomplete or damaged, or its pixels have no fixed range.
    """
    with _refusing():
        image.load()
        return _turn(_to_rgb(image), _orientation(image))


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
    except UnidentifiedImageError:
        raise ImageError("is not an image of a known format") from None
    except ImageError:
        raise
    except Exception as error:  # on damaged data a decoder can raise any error
        raise ImageError(f"cannot be decoded: {error}") from error


def _too_large() -> ImageError:
    return ImageError(f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels")


def _decode(data: bytes) -> tuple[Image.Image, bool]:
    image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise _too_large()  # Pillow only warns, until twice as many
    pixels = None
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):  # MPO: a JPEG followed by further frames
        pixels = _decode_jpeg(data, image.height, image.width)
    if pixels is None:
        image.load()
    orientation = _orientation(image)  # after load, which already rotates TIFF files
    image = _to_rgb(image) if pixels is None else Image.fromarray(pixels)
    return _turn(image, orientation), pixels is not None and orientation not in _UPRIGHT


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the pixels may be sound even if the EXIF data are damaged
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ImageError("has 32-bit pixels, which have no fixed range: make it 8 or 16 bits")
    if image.mode.startswith("I"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image.convert("RGBA"))
        image = ground
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
