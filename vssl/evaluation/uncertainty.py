"""Does the variance measure uncertainty? Selective accuracy, calibration, out-of-distribution detection."""

import math

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "SCORES",
    "calibration",
    "direction_score",
    "length_score",
    "most_certain_half",
    "ood_auroc",
    "score_report",
    "selective_accuracy",
    "variance_score",
]


def variance_score(mean: Tensor, logvar: Tensor) -> Tensor:
    """Mean log-variance over the latent dimensions, [N, D] -> [N]; the higher, the less certain.

    Up to scale and a constant this is the entropy of the posterior, D / 2 log(2 pi e) + 1/2 sum_d log sigma_d^2. It
    weights all dimensions equally, whereas a few large variances would dominate the sum of variances.
    """
    return logvar.mean(dim=1)


def length_score(mean: Tensor, logvar: Tensor) -> Tensor:
    """Minus the log of the mean square of the mean's entries, [N, D] -> [N]: a control that ignores the variance."""
    return -mean.square().mean(dim=1).log()


def direction_score(mean: Tensor, logvar: Tensor) -> Tensor:
    """Mean log-variance relative to the squared length of the mean, [N, D] -> [N]: the sum of the other two scores.

    It estimates the variance of the direction mean / |mean|, to first order sigma^2 / |mean|^2 orthogonal to the mean
    (delta method). A classifier by cosine similarity compares only directions.
    """
    return variance_score(mean, logvar) + length_score(mean, logvar)


SCORES = {"variance": variance_score, "direction": direction_score, "length": length_score}


def selective_accuracy(correct: Tensor, score: Tensor) -> Tensor:
    """Accuracy among the k most certain of N images, for k = 1 .. N; its mean is the area under the curve.

    The accuracy over coverage k / N of El-Yaniv and Wiener (JMLR 11, 2010) and Geifman and El-Yaniv
    (arXiv 1705.08500). Images with equal scores count with their mean accuracy, the expectation over random orders.

    Args:
        correct: bool [N].
        score: [N], the uncertainty.

    Returns:
        float64 [N] in [0, 1].
    """
    values, group = score.unique(return_inverse=True)  # in ascending order
    total = torch.zeros(len(values), dtype=torch.float64, device=score.device)
    mean = total.index_add(0, group, correct.double()) / group.bincount()
    expected = mean[group.sort().values]
    return expected.cumsum(dim=0) / torch.arange(1, len(score) + 1, device=score.device)


def most_certain_half(correct: Tensor, score: Tensor) -> dict[str, float]:
    """The accuracy of the half of the images that is most certain by its score, compared with that of all images.

    The half is a part of the whole. Therefore the error of the difference is computed from
    half - whole = (half - other half) / 2, whose two terms are independent. Standard errors are binomial.

    Args:
        correct: bool [N], N > 1.
        score: [N], the uncertainty.

    Returns:
        ``top1`` and ``standard_error`` of the half, ``whole_top1`` and ``whole_standard_error``, ``difference``
        and ``difference_standard_error``.
    """
    curve = selective_accuracy(correct, score)
    count, half_count = len(curve), len(curve) // 2
    half, whole = curve[half_count - 1].item(), curve[-1].item()
    other = (whole * count - half * half_count) / (count - half_count)

    def variance(share: float, trials: int) -> float:
        return share * (1 - share) / trials

    share = (count - half_count) / count
    error = share * math.sqrt(variance(half, half_count) + variance(other, count - half_count))
    return {
        "top1": half,
        "standard_error": math.sqrt(variance(half, half_count)),
        "whole_top1": whole,
        "whole_standard_error": math.sqrt(variance(whole, count)),
        "difference": half - whole,
        "difference_standard_error": error,
    }


def calibration(variance: Tensor, error: Tensor, bins: int = 10) -> dict:
    """Predicted variances and observed squared errors, in groups of equal size, ordered by predicted variance.

    Args:
        variance: [N], an image's predicted variance.
        error: [N], the same image's squared error.

    Returns:
        ``predicted`` and ``observed``: the mean of each in each group; ``ratio``: mean error over mean variance,
        1 if the variance is right on average; ``correlation``: Spearman's rank correlation of both over the images.
    """
    from scipy.stats import spearmanr

    groups = variance.argsort().tensor_split(bins)
    return {
        "predicted": [variance[group].mean().item() for group in groups],
        "observed": [error[group].mean().item() for group in groups],
        "ratio": (error.mean() / variance.mean()).item(),
        "correlation": float(spearmanr(variance.cpu().numpy(), error.cpu().numpy()).statistic),
    }


def ood_auroc(score: Tensor, foreign_score: Tensor) -> float:
    """Area under the ROC curve of detecting out-of-distribution images by their uncertainty: the share of pairs of one
    image of each kind in which the out-of-distribution image is less certain. 0.5 is chance. Scores [N] and [M]."""
    from sklearn.metrics import roc_auc_score

    foreign = torch.cat([torch.zeros(len(score)), torch.ones(len(foreign_score))])
    return float(roc_auc_score(foreign.numpy(), torch.cat([score, foreign_score]).cpu().numpy()))


def score_report(correct: Tensor, score: Tensor, foreign: Tensor | None, points: int = 50, bins: int = 40) -> dict:
    """Everything that is measured of an uncertainty score, as plain values.

    Args:
        correct: bool [N].
        score: [N], the uncertainty of the same images.
        foreign: [M], the uncertainty of out-of-distribution images; None: there are none.
        points: number of points of the curve.
        bins: of the histogram.

    Returns:
        ``mean`` and ``std`` of the score, ``most_certain_half``, ``area`` under the selective accuracy curve and
        ``points`` of it (``coverage``, ``top1``), ``ood_auroc`` (None without out-of-distribution images),
        ``histogram``: edges of the bins and densities.
    """
    curve = selective_accuracy(correct, score)
    kept = sorted({max(1, round(len(curve) * point / points)) for point in range(1, points + 1)})
    samples = {"val": score.cpu().numpy()} | ({} if foreign is None else {"ood": foreign.cpu().numpy()})
    edges = np.histogram_bin_edges(np.concatenate(list(samples.values())), bins)
    densities = {name: np.histogram(values, edges, density=True)[0].tolist() for name, values in samples.items()}
    return {
        "mean": score.mean().item(),
        "std": score.std().item(),
        "most_certain_half": most_certain_half(correct, score),
        "area": curve.mean().item(),
        "ood_auroc": None if foreign is None else ood_auroc(score, foreign),
        "curve": {
            "coverage": [count / len(curve) for count in kept],
            "top1": [curve[count - 1].item() for count in kept],
        },
        "histogram": {"edges": edges.tolist(), **densities},
    }
