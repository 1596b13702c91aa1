"""How well features use their space: RankMe, alignment, uniformity. Spread is ``vssl.metrics.feature_std``."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["alignment", "rankme", "uniformity"]


def rankme(features: Tensor) -> Tensor:
    """Effective rank of features [N, F]: the exponential of the entropy of their singular values, a scalar.

    exp(-sum_k p_k log p_k),  p_k = sigma_k / sum_j sigma_j + 1e-7, k = 1 .. min(N, F); from 1 (all features on one
    line through the origin) to min(N, F) (Garrido et al., RankMe, arXiv 2210.02885, equation 1; the effective rank is
    Roy and Vetterli's, EUSIPCO 2007). Features are not centred.
    """
    sigma = torch.linalg.svdvals(features.float())
    share = sigma / sigma.sum() + 1e-7
    return (-(share * share.log()).sum()).exp()


def alignment(one: Tensor, other: Tensor) -> Tensor:
    """Mean squared distance of two views' unit features, both [N, F]: 0 (invariant) to 4, a scalar.

    E |u - v|^2 (Wang and Isola, arXiv 2005.10242, equation 4, alpha = 2).
    """
    return (F.normalize(one.float(), dim=1) - F.normalize(other.float(), dim=1)).square().sum(dim=1).mean()


def uniformity(features: Tensor) -> Tensor:
    """Log of the mean Gaussian potential of all pairs of unit features [N, F], N > 1, a scalar.

    log E exp(-2 |u - v|^2), over pairs of different rows (Wang and Isola, arXiv 2005.10242, equation 5, t = 2): 0 at
    collapse, about -4 spread evenly over a sphere of many dimensions.
    """
    unit = F.normalize(features.float(), dim=1)
    count = len(unit)
    # |u - v|^2 = 2 - 2 u.v; rows in chunks, so that no N x N matrix is ever whole.
    potential = sum((4 * (rows @ unit.T) - 4).exp().sum(dtype=torch.float64) for rows in unit.split(1024))
    return ((potential - count) / (count * (count - 1))).log().float()
