"""Charts of runs: their curves, and a map of their embeddings."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.figure import Figure

from vssl.charts import new_figure

__all__ = ["CURVES", "draw_curves", "draw_map", "name_runs"]

CURVES = {  # key of metrics.jsonl: label and factor
    "knn_top1": ("kNN top-1, %", 100),
    "loss": ("loss (of each method's own scale)", 1),
    "feature_std": ("spread of features (1: even)", 1),
    "effective_rank": ("effective rank of features", 1),
    "logvar_student": ("mean log-variance (natural log)", 1),
}


def draw_curves(runs: dict[Path, list[dict]], keys: Sequence[str] = tuple(CURVES)) -> Figure:
    """Curves from the ``metrics.jsonl`` of each run, over its epochs.

    Args:
        runs: the lines by run directory. The legend has the names of ``name_runs``.
        keys: which of ``CURVES``, side by side.
    """
    names = name_runs(runs)
    figure = new_figure(4 * len(keys), 3.2)
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        label, factor = CURVES[key]
        for path, lines in runs.items():
            points = [(line["epoch"], factor * line[key]) for line in lines if key in line]
            if points:
                axes.plot(*zip(*points, strict=True), label=names[path], marker="." if key == "knn_top1" else None)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    return figure


def name_runs(runs: Iterable[Path]) -> dict[Path, str]:
    """A name for each run directory: that of its folder, or its whole path if names coincide."""
    names = {path: path.resolve().name for path in runs}
    counts = Counter(names.values())
    return {path: name if counts[name] == 1 else str(path) for path, name in names.items()}


def draw_map(points: np.ndarray, groups: dict[str, np.ndarray], labels: tuple[str, str]) -> Figure:
    """Images as points of a plane.

    Args:
        points: [N, 2].
        groups: the rows of ``points`` with one colour, by name; up to 20 groups have distinct colours.
        labels: of the axes.
    """
    figure = new_figure(5.4, 4)
    axes = figure.subplots()
    colours = colormaps["tab10" if len(groups) <= 10 else "tab20"]
    for number, (name, rows) in enumerate(groups.items()):
        axes.scatter(points[rows, 0], points[rows, 1], s=6, alpha=0.7, color=colours(number), label=_drawable(name))
    axes.set(xlabel=labels[0], ylabel=labels[1])
    figure.legend(loc="outside right upper", fontsize="small", markerscale=2)
    return figure


def _drawable(name: str) -> str:
    """A name in letters that the chart's font has; others, also bytes that are not UTF-8, as Python escapes them."""
    known = font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    return "".join(
        letter if ord(letter) in known else letter.encode("ascii", "backslashreplace").decode() for letter in name
    )
