"""Shared by all charts: a figure, bars of rates, a file. Without pyplot, which may need a display."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.files import write_atomically

__all__ = ["draw_rates", "new_figure", "save_chart"]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def save_chart(figure: Figure, path: Path) -> None:
    """Write a PNG file, completely or not at all.

    Raises:
        UserError: as ``write_atomically``.
    """
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))


def draw_rates(axes: Axes, rates: dict[str, dict], marked: Sequence[str], mark: str, colour: str) -> None:
    """Draw horizontal bars of medians, with error bars from the slowest to the fastest block.

    Args:
        rates: by name, with the keys images_per_second, low and high.
        marked: the names whose bars have the colour ``mark``.
    """
    medians = [rate["images_per_second"] for rate in rates.values()]
    spread = [
        [rate["images_per_second"] - rate["low"] for rate in rates.values()],
        [rate["high"] - rate["images_per_second"] for rate in rates.values()],
    ]
    bars = axes.barh(list(rates), medians, xerr=spread, color=[mark if name in marked else colour for name in rates])
    axes.bar_label(bars, [f" {median:,.0f}" for median in medians])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("source images per second")
