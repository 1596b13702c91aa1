"""Accuracy of a classifier and its confidence interval."""

import math

from torch import Tensor

__all__ = ["accuracies", "wilson_interval"]


def wilson_interval(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a binomial proportion (JASA 22, 1927): lower and upper bound, in [0, 1].

    Args:
        share: successes / ``count``.
        count: trials, at least 1.
        z: standard normal quantile; the default gives 95 %.
    """
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def accuracies(scores: Tensor, labels: Tensor) -> dict:
    """Top-1 and top-5 accuracy of scores [N, classes] for labels int64 [N]; with C < 5 classes top-5 means top-C. A
    score of -inf is no answer: such a class is never right.

    Returns:
        ``top1``, ``top5`` in [0, 1], ``top1_interval``: [low, high], 95 %, ``count``: N.
    """
    best = scores.topk(min(5, scores.shape[1]), dim=1)
    hits = (best.indices == labels[:, None]) & (best.values > -math.inf)
    top1, top5 = hits[:, 0].double().mean().item(), hits.any(dim=1).double().mean().item()
    return {"top1": top1, "top5": top5, "top1_interval": list(wilson_interval(top1, len(labels))), "count": len(labels)}
