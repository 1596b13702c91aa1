"""Pictures and charts as the page embeds them: ``data:`` URIs, with the words that describe them."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from vssl.report.pictures import fit

__all__ = ["Chart", "Picture", "embed_chart", "embed_picture"]

_THUMBNAIL = 64  # longest side of an embedded picture, in pixels


@dataclass(frozen=True)
class Picture:
    """A thumbnail."""

    source: str  # data URI
    alt: str
    width: int  # as shown, in CSS pixels
    height: int
    caption: str


@dataclass(frozen=True)
class Chart:
    """A chart, drawn once for light and once for dark pages."""

    light: str  # data URI
    dark: str
    alt: str


def embed_picture(pixels: np.ndarray, alt: str, caption: str = "") -> Picture:
    """A thumbnail of uint8 [H, W, 3]; small pictures stay as they are, without loss."""
    side = max(pixels.shape[:2])
    small = side <= _THUMBNAIL
    image, file = fit(pixels, min(side, _THUMBNAIL)), io.BytesIO()
    image.save(file, "PNG" if small else "JPEG", quality=85)
    # Enlarged pictures keep visible pixels.
    scale = _THUMBNAIL / max(image.size)
    width, height = (max(1, round(scale * length)) for length in image.size)
    return Picture(_data_uri("image/png" if small else "image/jpeg", file.getvalue()), alt, width, height, caption)


def embed_chart(draw: Callable[[], Figure], alt: str) -> Chart:
    """The figure that ``draw`` makes, which is called once for each style."""
    light, dark = (_draw(draw, style) for style in ("default", "dark_background"))
    return Chart(light, dark, alt)


def _draw(draw: Callable[[], Figure], style: str) -> str:
    file = io.BytesIO()
    with matplotlib.style.context([style, {"legend.frameon": False, "grid.color": "gray"}]):
        draw().savefig(file, format="png", dpi=110, transparent=True)
    return _data_uri("image/png", file.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
