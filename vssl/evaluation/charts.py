"""The chart of the protocol uncertainty."""

from matplotlib.figure import Figure

from vssl.charts import new_figure

__all__ = ["draw_uncertainty"]


def draw_uncertainty(report: dict) -> Figure:
    """Selective accuracy, calibration and the variance's histogram, from a report of the protocol uncertainty."""
    figure = new_figure(13, 3.6)
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
