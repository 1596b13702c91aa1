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


def mlp(inputs: int, hidden: int, outputs: int, *, bias: bool = True, standardise: bool = False) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, Linear: the head of BYOL (arXiv 2006.07733) and MoCo v3 (arXiv 2104.02057).

    Args:
        inputs, hidden, outputs: widths.
        bias: of the linear layers; MoCo v3 has none.
        standardise: end with a BatchNorm without affine parameters.
    """
    layers = [
        nn.Linear(inputs, hidden, bias=bias),
        BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs, bias=bias),
    ]
    if standardise:
        layers.append(BatchNorm1d(outputs, affine=False))
    return nn.Sequential(*layers)


def bounded(raw: Tensor, bound: float) -> Tensor:
    """Smoothly limit to (-bound, bound): ``bound * tanh(raw / bound)``, the identity near 0. float32."""
    return bound * torch.tanh(raw.float() / bound)


class GaussianHead(nn.Module):
    """A projector that ends in a diagonal Gaussian: a hidden layer, then a linear map each for mean and log-variance.

    The mean is standardised over the batch (a Gaussian density is not scale-free: without it means and variances
    shrink together). The log-variance is bounded smoothly to (-bound, bound).
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
