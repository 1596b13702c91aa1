"""Statistics of how features use their dimensions: spread, effective rank, RankMe, alignment, uniformity."""

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["alignment", "effective_rank", "feature_health", "feature_std", "rankme", "uniformity"]


def feature_health(features: Tensor, images: int) -> dict[str, Tensor]:
    """The diagnostics of every log line, from a batch's features: detached scalars, without a host sync. ``rankme`` is
    left out: on a GPU, singular values take longer than some training steps.

    Args:
        features: [V * B, F], view after view; spread, rank and uniformity are those of the first view.
        images: B.
    """
    views = features.detach().split(images)
    return {
        "feature_std": feature_std(views[0]),
        "effective_rank": effective_rank(views[0]),
        "alignment": alignment(*views),
        "uniformity": uniformity(views[0]),
    }


def feature_std(features: Tensor) -> Tensor:
    """Spread of features [N, F]: sqrt(F) times the mean over dimensions of the std of unit features.

    About 1 where directions are spread evenly, 0 at collapse (Chen and He, arXiv 2011.10566, section 4.1). A scalar.
    """
    unit = F.normalize(features.float(), dim=1)
    return unit.shape[1] ** 0.5 * unit.std(dim=0).mean()


def effective_rank(features: Tensor) -> Tensor:
    """The number of directions in which unit features [N, F] vary: the participation ratio of their covariance C, a
    scalar.

    (tr C)^2 / tr C^2 = (sum_k l_k)^2 / sum_k l_k^2 of its eigenvalues l_k (Gao et al., A theory of multineuronal
    dimensionality, bioRxiv 214262, 2017): from 1 (one direction) to min(N - 1, F) (all equally); 0 at collapse.
    """
    unit = F.normalize(features.float(), dim=1)
    centred = unit - unit.mean(dim=0)
    # Both products have the same nonzero eigenvalues: take the smaller one.
    product = centred @ centred.T if len(unit) < unit.shape[1] else centred.T @ centred
    return product.trace().square() / product.square().sum().clamp(min=1e-12)


def rankme(features: Tensor) -> Tensor:
    """Effective rank of features [N, F]: the exponential of the entropy of their singular values, a scalar.

    exp(-sum_k p_k log p_k),  p_k = sigma_k / sum_j sigma_j + 1e-7, k = 1 .. min(N, F); from 1 (all features on one
    line through the origin) to min(N, F) (Garrido et al., RankMe, arXiv 2210.02885, equation 1; the effective rank is
    Roy and Vetterli's, EUSIPCO 2007). Features are not centred.
    """
    sigma = torch.linalg.svdvals(features.float())
    share = sigma / sigma.sum() + 1e-7
    return (-(share * share.log()).sum()).exp()


def alignment(*views: Tensor) -> Tensor:
    """Mean squared distance of the unit features of two views, [N, F] each; of more views the mean over pairs. A scalar
    from 0 (invariant) to 4.

    E |u - v|^2 (Wang and Isola, arXiv 2005.10242, equation 4, alpha = 2).
    """
    units = [F.normalize(view.float(), dim=1) for view in views]
    distances = [(one - other).square().sum(dim=1).mean() for one, other in itertools.combinations(units, 2)]
    return torch.stack(distances).mean()


def uniformity(features: Tensor) -> Tensor:
    """Log of the mean Gaussian potential of all pairs of unit features [N, F], N > 1, a scalar.

    log E exp(-2 |u - v|^2), over pairs of different rows (Wang and Isola, arXiv 2005.10242, equation 5, t = 2): 0 at
    collapse, about -4 if spread evenly over a sphere of many dimensions.
    """
    unit = F.normalize(features.float(), dim=1)
    count = len(unit)
    # |u - v|^2 = 2 - 2 u.v; rows in chunks, to avoid an N x N matrix.
    potential = sum((4 * (rows @ unit.T) - 4).exp().sum(dtype=torch.float64) for rows in unit.split(1024))
    return ((potential - count) / (count * (count - 1))).log().float()
