"""Does the variance measure uncertainty? Selective accuracy, calibration, out-of-distribution detection."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vssl.evaluation.knn import nearest_neighbours
from vssl.models.heads import Gaussian

__all__ = [
    "auroc",
    "calibration",
    "decoder_scores",
    "excess_area",
    "most_certain_half",
    "nearest_is_right",
    "rank_correlation",
    "score_report",
    "selective_accuracy",
    "uncertainty_scores",
]


def uncertainty_scores(
    posterior: Gaussian, features: Tensor, bank_means: Tensor, bank: Tensor, *, temperature: float, k: int = 10
) -> dict[str, Tensor]:
    """The method's uncertainty scores and two controls that do not use its variance; a higher score is less certain.

    Training a variance is worthwhile only if it outperforms the controls.

    Args:
        posterior: means and log-variances [N, D].
        features: the backbone's, of the same images [N, F].
        bank_means: means of the posteriors of training images [M, D].
        bank: the backbone's features of the same training images [M, F].
        temperature: of ``decoder_scores``.
        k: which neighbour.

    Returns:
        by name, float32 [N]: ``variance``, the mean log-variance, which is up to scale and a constant the entropy of
        the posterior, D / 2 log(2 pi e) + 1/2 sum_d log sigma_d^2; ``decoder`` and ``marginal``, the
        ``decoder_scores``; the controls ``norm``, minus the log of the features' length (Kirchhof et al., URL, arXiv
        2307.03810), and ``neighbour``, the cosine distance to the k-th nearest training image (Sun et al., arXiv
        2204.06507).
    """
    similarity, _ = nearest_neighbours(bank, features, k)
    decoder, marginal = decoder_scores(posterior.mean, bank_means, temperature)
    return {
        "variance": posterior.logvar.mean(dim=1),
        "decoder": decoder,
        "marginal": marginal,
        "norm": -features.norm(dim=1).log(),
        "neighbour": 1 - similarity[:, -1],
    }


def decoder_scores(means: Tensor, bank: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Two uncertainties of latent vectors z under a decoder like the one that the method implies
    (``vssl.methods.vssl.implied_log_likelihood``, of cosines). Its candidates are the training images x_j, equally
    probable a priori.

    Here the priors' means are the student's, not the teacher's; neither side uses the predictor.

    Args:
        means: z, float32 [N, D].
        bank: mu, means of the training images' posteriors [M, D].
        temperature: T.

    Returns:
        float32 [N] each: the entropy of p(x_j | z) = softmax_j(cos(z, mu_j) / T) in nats, in [0, log M], the log of how
        many images z could stand for; and minus the log of the marginal p(z) = mean_j exp(cos(z, mu_j) / T), up to a
        constant: the distance of z from all training images.
    """
    bank = F.normalize(bank, dim=1)
    entropies, surprises = [], []
    for rows in F.normalize(means, dim=1).split(256):  # four matrices [256, M]: 5 GB for 1.3 million images
        log_density = rows @ bank.T / temperature
        total = log_density.logsumexp(dim=1, keepdim=True)
        log_p = log_density - total
        entropies.append(-(log_p.exp() * log_p).sum(dim=1))
        surprises.append(math.log(len(bank)) - total[:, 0])
    return torch.cat(entropies), torch.cat(surprises)


def nearest_is_right(features: Tensor, labels: Tensor) -> Tensor:
    """Whether the nearest other image by cosine similarity has the same label, bool [N]; its mean is R@1 (Recall at 1).

    features [N, F], N > 1; labels int64 [N].
    """
    _, nearest = nearest_neighbours(features, features, 2)
    itself = nearest[:, 0] == torch.arange(len(features), device=features.device)
    return labels[torch.where(itself, nearest[:, 1], nearest[:, 0])] == labels


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


def excess_area(correct: Tensor, score: Tensor) -> dict[str, float]:
    """``aurc``, the area under the curve of the error rate over coverage, 0 is best; ``e_aurc``, AURC minus the AURC of
    a perfect ranking (Geifman et al., arXiv 1805.08206).

    Arguments as in ``selective_accuracy``.
    """
    aurc, least = (1 - selective_accuracy(correct, by).mean().item() for by in (score, 1.0 - correct.float()))
    return {"aurc": aurc, "e_aurc": aurc - least}


def most_certain_half(correct: Tensor, score: Tensor) -> dict[str, float]:
    """The accuracy of the half of the images that is most certain by its score, compared with that of all images.

    The half is part of the whole, so the error of the difference is computed from half - whole = (half - other half) /
    2, whose two terms are independent. Standard errors are binomial.

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
        1 if the variance is right on average; ``ence``: the expected normalised calibration error over the groups,
        mean |sqrt(observed) - sqrt(predicted)| / sqrt(predicted) (Levi et al., arXiv 1905.11659, equation 8);
        ``correlation``: Spearman's rank correlation of both over the images.
    """
    groups = variance.argsort().tensor_split(bins)
    predicted, observed = (torch.stack([values[group].mean() for group in groups]) for values in (variance, error))
    return {
        "predicted": predicted.tolist(),
        "observed": observed.tolist(),
        "ence": ((observed.sqrt() - predicted.sqrt()).abs() / predicted.sqrt()).mean().item(),
        "ratio": (error.mean() / variance.mean()).item(),
        "correlation": rank_correlation(variance, error),
    }


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's, of two tensors [N]: from -1 to 1; 0 if one of them is constant."""
    from scipy.stats import spearmanr

    if one.min() == one.max() or other.min() == other.max():
        return 0.0
    return float(spearmanr(one.cpu().numpy(), other.cpu().numpy()).statistic)


def auroc(low: Tensor, high: Tensor) -> tuple[float, float]:
    """Area under the ROC curve of telling two groups apart by a score, scores [N] and [M]: the share of pairs in which
    the one of ``high`` is higher, 0.5 is chance; and its standard error (Hanley and McNeil, Radiology 143, 1982)."""
    from sklearn.metrics import roc_auc_score

    group = torch.cat([torch.zeros(len(low)), torch.ones(len(high))])
    area = float(roc_auc_score(group.numpy(), torch.cat([low, high]).cpu().numpy()))
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (len(high) - 1) * (first - area**2) + (len(low) - 1) * (second - area**2)
    return area, math.sqrt(max(variance, 0.0) / (len(low) * len(high)))


def score_report(
    correct: Tensor, found: Tensor, score: Tensor, ood: Tensor | None, points: int = 50, bins: int = 40
) -> dict:
    """All measures of an uncertainty score, as plain values.

    Args:
        correct: bool [N], whether the classifier is right.
        found: bool [N], of ``nearest_is_right``.
        score: [N], the uncertainty of the same images.
        ood: [M], the uncertainty of out-of-distribution images; None: there are none.
        points: number of points of the curve.
        bins: of the histogram.

    Returns:
        ``mean`` and ``std`` of the score, ``most_certain_half``, ``area`` under the selective accuracy curve and
        ``points`` of it (``coverage``, ``top1``), ``aurc`` and ``e_aurc``; ``r_auroc``, the AUROC of telling by the
        score whether the nearest image has the right label (Kirchhof et al., arXiv 2307.03810; None if all have or none
        has), and ``r_auroc_standard_error``; ``ood_auroc`` (None without out-of-distribution images); ``histogram``:
        edges of the bins and densities.
    """
    curve = selective_accuracy(correct, score)
    kept = sorted({max(1, round(len(curve) * point / points)) for point in range(1, points + 1)})
    samples = {"val": score.cpu().numpy()} | ({} if ood is None else {"ood": ood.cpu().numpy()})
    edges = np.histogram_bin_edges(np.concatenate(list(samples.values())), bins)
    densities = {name: np.histogram(values, edges, density=True)[0].tolist() for name, values in samples.items()}
    r_auroc = auroc(score[found], score[~found]) if found.any() and not found.all() else (None, None)
    return {
        "mean": score.mean().item(),
        "std": score.std().item(),
        "most_certain_half": most_certain_half(correct, score),
        "area": curve.mean().item(),
        **excess_area(correct, score),
        "r_auroc": r_auroc[0],
        "r_auroc_standard_error": r_auroc[1],
        "ood_auroc": None if ood is None else auroc(score, ood)[0],
        "curve": {
            "coverage": [count / len(curve) for count in kept],
            "top1": [curve[count - 1].item() for count in kept],
        },
        "histogram": {"edges": edges.tolist(), **densities},
    }
