"""Projection, prediction and Gaussian heads."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vssl.models.norm import BatchNorm1d

__all__ = ["Gaussian", "GaussianHead", "bounded", "mlp"]


class Gaussian(NamedTuple):
    """A diagonal Gaussian for each sample."""

    mean: Tensor  # [B, D]
    logvar: Tensor  # float32 [B, D], log sigma^2


def mlp(
    inputs: int,
    hidden: int,
    outputs: int,
    *,
    layers: int = 2,
    bias: bool = True,
    standardise: bool = False,
    norm: type[nn.Module] = BatchNorm1d,
) -> nn.Sequential:
    """(Linear, norm, ReLU) for every hidden layer, then Linear. 2 layers are the head of BYOL (arXiv 2006.07733)
    and MoCo v3 (arXiv 2104.02057), 3 layers the expander of VICReg (arXiv 2105.04906) and the projector of LeJEPA
    (arXiv 2511.08544).

    Args:
        inputs, hidden, outputs: widths.
        layers: number of linear layers, at least 2.
        bias: whether the linear layers have a bias; those of MoCo v3 have none.
        norm: of the hidden layers, called with their width.
        standardise: end with a BatchNorm without affine parameters.
    """
    parts: list[nn.Module] = []
    for width in [inputs] + [hidden] * (layers - 2):
        parts += [nn.Linear(width, hidden, bias=bias), norm(hidden), nn.ReLU(inplace=True)]
    parts.append(nn.Linear(hidden, outputs, bias=bias))
    if standardise:
        parts.append(BatchNorm1d(outputs, affine=False))
    return nn.Sequential(*parts)


def bounded(raw: Tensor, bound: float) -> Tensor:
    """Smoothly limit to (-bound, bound): ``bound * tanh(raw / bound)``, the identity near 0. float32."""
    return bound * torch.tanh(raw.float() / bound)


class GaussianHead(nn.Module):
    """A projector that ends in a diagonal Gaussian: a hidden layer, then one linear map for the mean and one for the
    log-variance.

    The mean is standardised over the batch: the loss depends on the scale of the Gaussian, and without standardisation
    means and variances would shrink together. The log-variance is bounded smoothly to (-bound, bound).
    [B, inputs] -> Gaussian of [B, outputs].
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, bound: float) -> None:
        super().__init__()
        self.bound = bound
        self.hidden = nn.Sequential(nn.Linear(inputs, hidden), BatchNorm1d(hidden), nn.ReLU(inplace=True))
        self.mean = nn.Sequential(nn.Linear(hidden, outputs), BatchNorm1d(outputs, affine=False))
        self.logvar = nn.Linear(hidden, outputs)

    def forward(self, features: Tensor) -> Gaussian:
        hidden = self.hidden(features)
        return Gaussian(self.mean(hidden), bounded(self.logvar(hidden), self.bound))
