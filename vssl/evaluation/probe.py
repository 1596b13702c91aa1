"""The online linear probe: a classifier that trains together with the encoder but sends it no gradient."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vssl.collectives import Peers

__all__ = ["OnlineProbe"]


class OnlineProbe(nn.Module):
    """A linear classifier of the student's detached features, with an optimizer of its own. As by a BatchNorm without
    weights, features are standardised first, so that their scale and offset do not matter.

    [N, F] -> logits [N, classes].

    Args:
        peers: the processes that share every batch, and whose statistics are one.
    """

    def __init__(self, features: int, classes: int, peers: Peers | None = None) -> None:
        super().__init__()
        self.peers = peers or Peers()
        self.linear = nn.Linear(features, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))

    def forward(self, features: Tensor) -> Tensor:
        """With the moving averages of mean and variance."""
        return self._classify(features.detach().float(), self.mean, self.variance)

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of features [V * B, F] for labels int64 [B]; images labelled -1 do not count. Moves the
        moving averages."""
        features = features.detach().float()
        mean = self.peers.mean(features.mean(dim=0))
        variance = self.peers.mean((features - mean).square().mean(dim=0))
        with torch.no_grad():
            self.mean.lerp_(mean, _MOMENTUM)
            self.variance.lerp_(variance, _MOMENTUM)
        labels = labels.repeat(len(features) // len(labels))
        logits = self._classify(features, mean, variance)
        losses = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        return losses / (labels >= 0).sum().clamp(min=1)

    def _classify(self, features: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        # Not BatchNorm's 1e-5, which is no small part of a small variance.
        scale = (variance + _EPSILON * mean.square()).clamp(min=_LEAST).rsqrt()
        return self.linear((features - mean) * scale)


_MOMENTUM = 0.1  # as BatchNorm's
_EPSILON = 1e-10  # a feature that varies less, relative to its mean, does so by rounding
_LEAST = 1e-20
