"""How often a classifier is right, and how far chance may have carried that figure."""

import math

from torch import Tensor

__all__ = ["accuracies", "wilson_interval"]


def wilson_interval(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a binomial proportion (JASA 22, 1927): low and high end, within [0, 1].

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
    """Top-1 and top-5 of scores [N, classes] for labels int64 [N]; with fewer than 5 classes, of as many as there are.

    Returns:
        ``top1``, ``top5`` in [0, 1], ``top1_interval``: [low, high], 95 %, ``count``: N.
    """
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices
    hits = best == labels[:, None]
    top1, top5 = hits[:, 0].double().mean().item(), hits.any(dim=1).double().mean().item()
    return {"top1": top1, "top5": top5, "top1_interval": list(wilson_interval(top1, len(labels))), "count": len(labels)}
