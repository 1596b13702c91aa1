"""The chart of a profile: the stages of a run beside the floors of the hardware."""

from matplotlib.figure import Figure

from vssl.charts import draw_rates, new_figure

__all__ = ["draw_stages"]


def draw_stages(report: dict) -> Figure:
    """A bar with its spread for each stage of a ``StageProfiler``'s report, a line for each floor."""
    figure = new_figure(8, 4)
    axes = figure.subplots()
    draw_rates(axes, report["stages"], [report["bottleneck"]], "tab:red", "tab:blue")
    for number, (name, value) in enumerate(report["floors"].items()):
        axes.axvline(value, color=f"C{number + 1}", linestyle="--", label=f"floor: {name} {value:,.0f}")
    axes.set(xscale="log", ylabel="stage")
    axes.set_title(report["advice"], fontsize=8)
    axes.legend(fontsize=8)
    return figure
