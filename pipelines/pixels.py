"""From the samples of a file to 8-bit colours: the range of 16-bit samples, and transparency."""

import numpy as np
from PIL import Image

from pipelines.errors import ImageError

__all__ = ["dark", "png_top", "scaled", "without_alpha"]


def png_top(image: Image.Image, bits: int | None) -> int | None:
    """The largest value of a 16-bit PNG with ``bits`` significant bits; None: it is not declared.

    The format wants samples scaled to 16 bits, but some programs store 10 or 12 bits as they are.
    """
    if bits is None or not 8 < bits < 16:
        return None
    if not image.mode.startswith("I"):
        return None
    values = np.asarray(image)
    is_scaled = values.max(initial=0) >= 2**bits or not (values & (2 ** (16 - bits) - 1)).any()
    return 65535 if is_scaled else 2**bits - 1


def scaled(values: np.ndarray, top: int | None) -> np.ndarray:
    """16-bit samples as uint8, by the range 0..top; None: 0..65535, if that is plausible."""
    largest = int(values.max(initial=0))
    if top is None and 0 < largest < 4096:
        raise dark(f"0..{largest}")
    if top is not None and largest > top:
        raise ImageError(f"declares values up to {top} and has {largest}: make it 8 bits")
    top = top or 65535
    return ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)


def dark(range: str) -> ImageError:
    """What is said of 16-bit samples that would become a black picture; ``range``: of their values."""
    return ImageError(
        f"has 16-bit values of {range}, under a sixteenth of their range, and declares no other: make it 8 bits"
    )


def without_alpha(image: Image.Image, is_tiff: bool, changes: list[str]) -> Image.Image:
    """Lay an image on white. If its alpha is 0 everywhere, it is meant to have none.

    Raises:
        ImageError: a TIFF whose alpha is mostly neither clear nor opaque, as a fourth measured channel is.
    """
    if image.mode != "RGBA":
        return image
    counts = image.getchannel("A").histogram()
    if not any(counts[1:]):
        changes.append("empty alpha left out")
        return image.convert("RGB")
    if is_tiff and sum(counts[1:255]) > sum(counts) // 2:
        raise ImageError(
            "has an alpha channel that is mostly neither clear nor opaque, as near infrared is: save it without"
        )
    if any(counts[:255]):
        changes.append("transparent, laid on white")
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    return ground.convert("RGB")
