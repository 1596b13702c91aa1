"""Charts of the figures that the programs write. They do not use pyplot, which may need a display."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.files import write_atomically

__all__ = [
    "CURVES",
    "draw_curves",
    "draw_loaders",
    "draw_map",
    "draw_methods",
    "draw_stages",
    "draw_uncertainty",
    "name_runs",
    "save_chart",
]

_TASKS = {"crops": "two crops", "whole": "whole images", "views": "two augmented views"}
_RATE = "source images per second"
CURVES = {  # key of metrics.jsonl: label and factor
    "knn_top1": ("kNN top-1, %", 100),
    "loss": ("loss (of each method's own scale)", 1),
    "feature_std": ("spread of features (1: even)", 1),
    "effective_rank": ("effective rank of features", 1),
    "logvar_student": ("mean log-variance (natural log)", 1),
}


def save_chart(figure: Figure, path: Path) -> None:
    """Write a PNG file, completely or not at all.

    Raises:
        UserError: as ``write_atomically``.
    """
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))


def draw_stages(report: dict) -> Figure:
    """``tools/throughput.py``: a bar with its spread for each stage, a line for each floor."""
    figure = _figure(8, 4)
    axes = figure.subplots()
    _draw_rates(axes, report["stages"], [report["bottleneck"]], "tab:red", "tab:blue")
    for number, (name, value) in enumerate(report["floors"].items()):
        axes.axvline(value, color=f"C{number + 1}", linestyle="--", label=f"floor: {name} {value:,.0f}")
    axes.set(xscale="log", ylabel="stage")
    axes.set_title(report["advice"], fontsize=8)
    axes.legend(fontsize=8)
    return figure


def draw_loaders(report: dict) -> Figure:
    """``tools/compare.py loaders``: a bar with its spread for each loader, grouped by task."""
    loaders = report["loaders"]
    tasks = dict.fromkeys(rate["task"] for rate in loaders.values())
    groups = {task: {name: rate for name, rate in loaders.items() if rate["task"] == task} for task in tasks}
    figure = _figure(9, 1.5 + 0.4 * len(loaders) + 0.3 * len(groups))
    rows = figure.subplots(len(groups), squeeze=False, height_ratios=list(map(len, groups.values())))[:, 0]
    for axes, (task, group) in zip(rows, groups.items(), strict=True):
        _draw_rates(axes, group, [name for name in group if name.startswith("vssl")], "tab:blue", "tab:gray")
        axes.set_ylabel("loader")
        axes.set_title(_TASKS[task], loc="left", fontsize=10)
    images, loading = report["images"], report["loading"]
    title = f"{images['count']:,} images, views of {loading['image_size']} pixels, {loading['workers']} workers"
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_rates(axes: Axes, rates: dict[str, dict], marked: Sequence[str], mark: str, colour: str) -> None:
    """Horizontal bars of medians, with error bars from the slowest to the fastest block."""
    medians = [rate["images_per_second"] for rate in rates.values()]
    spread = [
        [rate["images_per_second"] - rate["low"] for rate in rates.values()],
        [rate["high"] - rate["images_per_second"] for rate in rates.values()],
    ]
    bars = axes.barh(list(rates), medians, xerr=spread, color=[mark if name in marked else colour for name in rates])
    axes.bar_label(bars, [f" {median:,.0f}" for median in medians])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(_RATE)


def draw_methods(report: dict) -> Figure:
    """``tools/compare.py methods``: accuracies (seeds, means, standard errors), and kNN over the epochs (means, and a
    band from the lowest to the highest seed)."""
    arms = report["arms"]
    first = next(iter(arms.values()))
    accuracies = list(first["mean"])
    figure = _figure(11, 4)
    bars, curves = figure.subplots(1, 2)
    width = 0.8 / len(arms)
    for place, (name, arm) in enumerate(arms.items()):
        colour = f"C{place}"
        for group, key in enumerate(accuracies):
            x = group + (place - (len(arms) - 1) / 2) * width
            seeds = [100 * run[key] for run in arm["runs"] if key in run]
            if seeds:
                error = arm["standard_error"][key]
                height = 100 * arm["mean"][key]
                bar = bars.bar(x, height, 0.9 * width, yerr=error and 100 * error, color=colour, alpha=0.6)
                bars.bar_label(bar, fmt="%.1f", fontsize=7, label_type="center")
                bars.scatter([x] * len(seeds), seeds, s=8, color="black", zorder=3)
        knn = [run["knn_curve"] for run in arm["runs"]]
        shared = [epoch for epoch in knn[0] if all(epoch in curve for curve in knn)]
        values = [[100 * curve[epoch] for curve in knn] for epoch in shared]
        epochs = list(map(float, shared))
        curves.plot(epochs, list(map(statistics.fmean, values)), marker=".", color=colour, label=name)
        curves.fill_between(
            epochs, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.2, linewidth=0
        )
    bars.set_xticks(range(len(accuracies)), [key.removesuffix("_top1") for key in accuracies])
    bars.set(xlabel="evaluation", ylabel="top-1, %", ylim=(0, None))
    curves.set(xlabel="epoch", ylabel="kNN top-1 during training, %")
    curves.grid(alpha=0.3)
    curves.legend()
    numbers = ", ".join(str(run["seed"]) for run in first["runs"])
    model, train = first["config"]["model"], first["config"]["train"]
    figure.suptitle(f"{model['backbone']}, {train['epochs']} epochs, seeds {numbers}", fontsize=10)
    return figure


def draw_curves(runs: dict[Path, list[dict]], keys: Sequence[str] = tuple(CURVES)) -> Figure:
    """``tools/plot.py`` and ``tools/report.py``: curves from the ``metrics.jsonl`` of each run, over its epochs.

    Args:
        runs: the lines by run directory. The legend has the names of ``name_runs``.
        keys: which of ``CURVES``, side by side.
    """
    names = name_runs(runs)
    figure = _figure(4 * len(keys), 3.2)
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
    """``tools/report.py``: images as points of a plane.

    Args:
        points: [N, 2].
        groups: the rows of ``points`` with one colour, by name; up to 20 groups have distinct colours.
        labels: of the axes.
    """
    figure = _figure(5.4, 4)
    axes = figure.subplots()
    colours = colormaps["tab10" if len(groups) <= 10 else "tab20"]
    for number, (name, rows) in enumerate(groups.items()):
        axes.scatter(points[rows, 0], points[rows, 1], s=6, alpha=0.7, color=colours(number), label=name)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    figure.legend(loc="outside right upper", fontsize="small", markerscale=2)
    return figure


def draw_uncertainty(report: dict) -> Figure:
    """``tools/evaluate.py --protocol uncertainty``: selective accuracy, calibration, the variance's histogram."""
    figure = _figure(13, 3.6)
    curves, reliability, densities = figure.subplots(1, 3)
    for name, score in report["scores"].items():
        label = f"by {name}: area {score['area']:.3f}"
        curves.plot(score["curve"]["coverage"], score["curve"]["top1"], label=label)
    curves.axhline(report["top1"], linestyle="--", color="gray", label=f"at random: {report['top1']:.3f}")
    curves.set(
        xlabel="share of images kept, the most certain first", ylabel="kNN top-1 among them, as a share", xlim=(0, 1)
    )
    groups = report["calibration"]
    reliability.axline((groups["predicted"][0],) * 2, slope=1, linestyle="--", color="gray", label="as predicted")
    label = f"each point: a tenth of the images; ratio {groups['ratio']:.2f}"
    reliability.plot(groups["predicted"], groups["observed"], marker="o", label=label)
    reliability.set(
        xlabel="variance that the student predicts, per dimension",
        ylabel="squared error to the teacher's\nother view, per dimension",
    )
    variance = report["scores"]["variance"]
    names = {"val": report["dataset"]}
    if "ood" in report:
        names["ood"] = f"{report['ood']['dataset']}: AUROC {variance['ood_auroc']:.3f}"
    for key, name in names.items():
        histogram = variance["histogram"]
        densities.stairs(histogram[key], histogram["edges"], fill=True, alpha=0.5, label=name)
    densities.set(xlabel="mean log-variance (natural log)", ylabel="density of images, per unit of log-variance")
    for axes in (curves, reliability, densities):
        axes.legend(fontsize="small")
    return figure


def _figure(width: float, height: float) -> Figure:
    """A figure of a size in inches."""
    return Figure(figsize=(width, height), layout="constrained")
