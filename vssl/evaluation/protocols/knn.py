"""Weighted kNN by cosine similarity, and diagnostics of val's features."""

import math
from dataclasses import dataclass

from torch import Tensor

from pipelines.options import option
from vssl.evaluation.feature_statistics import alignment, feature_std, rankme, uniformity
from vssl.evaluation.offline import OfflineEvaluation
from vssl.evaluation.protocols.base import EvaluationProtocol, ProtocolOptions

__all__ = ["KNN", "KNNOptions"]

_HEALTH = ("feature_std", "rankme", "uniformity", "alignment")
_WIDE_K, _WIDE_TEMPERATURE = 200, 0.1  # the setting of lightly's benchmarks, to compare with their figures


@dataclass(frozen=True)
class KNNOptions(ProtocolOptions):
    k: int = option(20, "number of neighbours", low=1)
    temperature: float = option(0.07, "temperature of the neighbours' weights", low=1e-3)


class KNN(EvaluationProtocol):
    """Weighted kNN by cosine similarity, and how well features use their dimensions.

    The report also has kNN with k = 200 and T = 0.1, whatever the options are.
    """

    Options = KNNOptions

    def measure(self, evaluation: OfflineEvaluation) -> dict:
        k, temperature = self.options.k, self.options.temperature
        features, labels = evaluation.features("val")
        votes = _cast(evaluation.knn_votes(k=k, temperature=temperature))
        wide = evaluation.report("knn", _cast(evaluation.knn_votes(k=_WIDE_K, temperature=_WIDE_TEMPERATURE)), labels)
        views = evaluation.of_views(lambda views, images: evaluation.model.backbone(views).split(images))
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
            "alignment": alignment(*views).item(),
        }

    def describe(self, report: dict) -> list[str]:
        wide = report["wide"]
        line = f"knn top-1 with k={wide['k']}, T={wide['temperature']}: {wide['top1']:.4f}"
        return [line, *(f"{name}: {report[name]:.4g}" for name in _HEALTH)]


def _cast(votes: Tensor) -> Tensor:
    """Votes [N, classes] as scores, in which a class without a vote is no answer."""
    return votes.where(votes > 0, -math.inf)
