"""Is the variance an uncertainty? Selective kNN accuracy, out-of-distribution detection, calibration."""

from torch import Tensor

from pipelines.formats.packed import Packed
from vssl.evaluation.offline import OfflineEvaluation
from vssl.evaluation.uncertainty import SCORES, calibration, score_report

__all__ = ["describe", "measure"]


def measure(evaluation: OfflineEvaluation, foreign: Packed | None = None) -> dict:
    """As ``EvaluationProtocol.measure``, for each of ``SCORES``; and the calibration, which compares the predicted
    variance with the observed squared error."""
    method = evaluation.model.trained_method()
    features, labels = evaluation.features("val")
    ours, theirs = method.posterior(features), None
    votes = evaluation.knn_votes()
    correct = votes.argmax(dim=1) == labels
    report = evaluation.report("uncertainty", votes, labels)
    if foreign is not None:
        split = "val" if "val" in foreign.splits else "train"
        theirs = method.posterior(evaluation.extract(foreign, split)[0])
        report["ood"] = {"dataset": foreign.dataset, "split": split, "count": len(theirs.mean)}
    report["scores"] = {
        name: score_report(correct, score(*ours), None if theirs is None else score(*theirs))
        for name, score in SCORES.items()
    }
    report["calibration"] = calibration(*_errors(evaluation))
    return report


def _errors(evaluation: OfflineEvaluation) -> tuple[Tensor, Tensor]:
    """Predicted variance and squared error of each image of val, means over dimensions and both views, [N] each."""
    method = evaluation.model.trained_method()

    def compare(views: Tensor) -> tuple[Tensor, Tensor]:
        (mean, logvar), target = method.predict(views)
        variance, error = logvar.exp().mean(dim=1), (mean - target).square().mean(dim=1)
        return variance.unflatten(0, (2, -1)).mean(dim=0), error.unflatten(0, (2, -1)).mean(dim=0)

    return evaluation.of_views(compare)


def describe(report: dict) -> list[str]:
    lines = []
    for name, score in report["scores"].items():
        half = score["most_certain_half"]
        lines.append(
            f"by {name}, the most certain half: {half['top1']:.4f} +- {half['standard_error']:.4f}, better than all by "
            f"{half['difference']:+.4f} +- {half['difference_standard_error']:.4f}; area under the curve: "
            f"{score['area']:.4f}"
        )
        if score["ood_auroc"] is not None:
            lines.append(f"by {name}, AUROC against {report['ood']['dataset']}: {score['ood_auroc']:.4f}")
    groups = report["calibration"]
    lines.append(
        f"squared error over predicted variance: {groups['ratio']:.3f}, rank correlation over the images: "
        f"{groups['correlation']:.3f}"
    )
    return lines
