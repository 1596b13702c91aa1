"""HTML in pieces: text is escaped unless it is ``Html`` already."""

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from vssl.report.pictures import fit

__all__ = ["Html", "beside", "bullets", "chart", "join", "page", "paragraph", "picture", "pictures", "section", "table"]

_THUMBNAIL = 64  # longest side of an embedded picture, in pixels


class Html(str):
    """Finished HTML."""


def _html(value: object) -> str:
    return value if isinstance(value, Html) else html.escape(str(value))


def join(parts: Iterable[object]) -> Html:
    return Html("\n".join(map(_html, parts)))


def beside(*parts: Html) -> Html:
    """Parts in columns where there is room, else one below the other."""
    return Html(f'<div class="beside">{join(parts)}</div>')


def paragraph(*parts: object) -> Html:
    return Html(f"<p>{' '.join(map(_html, parts))}</p>")


def bullets(items: Iterable[object], name: str) -> Html:
    """A list; ``name``: its CSS class."""
    return Html(f'<ul class="{name}">{"".join(f"<li>{_html(item)}</li>" for item in items)}</ul>')


def section(title: str, *parts: object, level: int = 2) -> Html:
    """A section under a heading of ``level``."""
    return Html(f"<section>\n<h{level}>{_html(title)}</h{level}>\n{join(parts)}\n</section>")


def table(caption: str, head: Sequence[object], rows: Iterable[Sequence[object]], *, long: bool = False) -> Html:
    """A table that scrolls within its box if it is too wide, a ``long`` one also if it is too high; the first cell of
    each row names the row."""
    names = "".join(f'<th scope="col">{_html(name)}</th>' for name in head)
    body = "\n".join(
        f'<tr><th scope="row">{_html(row[0])}</th>{"".join(f"<td>{_html(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    kind, label = "box long" if long else "box", html.escape(caption)
    return Html(
        f'<div class="{kind}" role="region" aria-label="{label}" tabindex="0">\n<table><caption>{label}</caption>\n'
        f"<thead><tr>{names}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def picture(pixels: np.ndarray, alt: str) -> Html:
    """A thumbnail of uint8 [H, W, 3]; small pictures stay as they are, without loss."""
    side = max(pixels.shape[:2])
    small = side <= _THUMBNAIL
    image, file = fit(pixels, min(side, _THUMBNAIL)), io.BytesIO()
    image.save(file, "PNG" if small else "JPEG", quality=85)
    uri = _data_uri("image/png" if small else "image/jpeg", file.getvalue())
    # Enlarged pictures keep visible pixels.
    scale = _THUMBNAIL / max(image.size)
    width, height = (max(1, round(scale * length)) for length in image.size)
    return Html(f'<img class="thumbnail" src="{uri}" alt="{html.escape(alt)}" width="{width}" height="{height}">')


def pictures(items: Iterable[tuple[Html, str]]) -> Html:
    """Pictures side by side, each with its caption."""
    figures = (f"<figure>{image}<figcaption>{_html(caption)}</figcaption></figure>" for image, caption in items)
    return Html(f'<div class="pictures">{"".join(figures)}</div>')


def chart(draw: Callable[[], Figure], alt: str) -> Html:
    """A chart, drawn once for light and once for dark pages."""
    light, dark = (_draw(draw, style) for style in ("default", "dark_background"))
    return Html(
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img class="chart" src="{light}" alt="{html.escape(alt)}"></picture>'
    )


def _draw(draw: Callable[[], Figure], style: str) -> str:
    file = io.BytesIO()
    with matplotlib.style.context([style, {"legend.frameon": False, "grid.color": "gray"}]):
        draw().savefig(file, format="png", dpi=110, transparent=True)
    return _data_uri("image/png", file.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def page(title: str, style: str, *parts: object) -> str:
    """A whole document; ``style``: its CSS."""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{_html(title)}</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n<h1>{_html(title)}</h1>\n{join(parts)}\n</main>\n</body>\n"
        "</html>\n"
    )
