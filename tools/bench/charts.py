"""Charts of the comparisons: loaders, and methods."""

import statistics

from matplotlib.figure import Figure

from vssl.charts import draw_rates, new_figure

__all__ = ["draw_loaders", "draw_methods"]

_TASKS = {"crops": "two crops", "whole": "whole images", "views": "two augmented views"}


def draw_loaders(report: dict) -> Figure:
    """A bar with its spread for each loader, grouped by task."""
    loaders = report["loaders"]
    tasks = dict.fromkeys(rate["task"] for rate in loaders.values())
    groups = {task: {name: rate for name, rate in loaders.items() if rate["task"] == task} for task in tasks}
    figure = new_figure(9, 1.5 + 0.4 * len(loaders) + 0.3 * len(groups))
    rows = figure.subplots(len(groups), squeeze=False, height_ratios=list(map(len, groups.values())))[:, 0]
    for axes, (task, group) in zip(rows, groups.items(), strict=True):
        draw_rates(axes, group, [name for name in group if name.startswith("vssl")], "tab:blue", "tab:gray")
        axes.set_ylabel("loader")
        axes.set_title(_TASKS[task], loc="left", fontsize=10)
    images, loading = report["images"], report["loading"]
    title = f"{images['count']:,} images, views of {loading['image_size']} pixels, {loading['workers']} workers"
    figure.suptitle(title, fontsize=10)
    return figure


def draw_methods(report: dict) -> Figure:
    """Accuracies (seeds, means, standard errors), and kNN over the epochs (means, and a
    band from the lowest to the highest seed)."""
    arms = report["arms"]
    first = next(iter(arms.values()))
    accuracies = list(first["mean"])
    figure = new_figure(11, 4)
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
