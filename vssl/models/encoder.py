"""The encoder (backbone and projector), and how a network processes two views."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["Encoder", "per_view"]

Output = TypeVar("Output")


class Encoder(nn.Module):
    """Backbone and projector. A run exports the backbone; the projector belongs to the method.

    Args:
        backbone: [B, 3, S, S] -> features [B, F].
        projector: features [B, F] -> an embedding (a tensor, or a named tuple of tensors).
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, images: Tensor) -> tuple:
        """images [B, 3, S, S] -> features [B, F] and the projector's embedding."""
        features = self.backbone(images)
        return features, self.projector(features)


def per_view(network: Callable[[Tensor], Output], views: Tensor) -> Output:
    """Run ``network`` on each half of ``views`` [2B, ...] separately, as in the methods' papers. So BatchNorm takes
    its statistics from one view at a time. The results (tensors or tuples of them) are joined again: [2B, ...]."""
    first, second = (network(view) for view in views.chunk(2))
    return _join(first, second)


def _join(first: Any, second: Any) -> Any:
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    joined = [_join(*pair) for pair in zip(first, second, strict=True)]
    return type(first)(*joined) if hasattr(first, "_fields") else tuple(joined)
