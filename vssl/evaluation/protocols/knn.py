"""Weighted kNN by cosine similarity, and diagnostics of val's features."""

from pipelines.formats.packed import Packed
from vssl.evaluation.feature_statistics import alignment, feature_std, rankme, uniformity
from vssl.evaluation.offline import OfflineEvaluation

__all__ = ["describe", "measure"]

_HEALTH = ("feature_std", "rankme", "uniformity", "alignment")
_WIDE_K, _WIDE_TEMPERATURE = 200, 0.1  # the setting of lightly's benchmarks, to compare with their figures


def measure(
    evaluation: OfflineEvaluation, foreign: Packed | None = None, *, k: int = 20, temperature: float = 0.07
) -> dict:
    """As ``EvaluationProtocol.measure``; ``k`` and ``temperature`` as in ``knn_predict``."""
    features, labels = evaluation.features("val")
    votes = evaluation.knn_votes(k=k, temperature=temperature)
    wide = evaluation.report("knn", evaluation.knn_votes(k=_WIDE_K, temperature=_WIDE_TEMPERATURE), labels)
    both_views = evaluation.of_views(lambda views: evaluation.model.backbone(views).chunk(2))
    return evaluation.report("knn", votes, labels) | {
        "k": k,
        "temperature": temperature,
        "wide": {
            "k": _WIDE_K,
            "temperature": _WIDE_TEMPERATURE,
            **{key: wide[key] for key in ("top1", "top5", "top1_interval")},
        },
        "feature_std": feature_std(features).item(),
        "rankme": rankme(features).item(),
        "uniformity": uniformity(features).item(),
        "alignment": alignment(*both_views).item(),
    }


def describe(report: dict) -> list[str]:
    wide = report["wide"]
    line = f"knn top-1 with k={wide['k']}, T={wide['temperature']}: {wide['top1']:.4f}"
    return [line, *(f"{name}: {report[name]:.4g}" for name in _HEALTH)]
