"""The online linear probe: a classifier that trains together with the encoder but sends it no gradient."""

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["OnlineProbe"]


class OnlineProbe(nn.Module):
    """A linear classifier of the student's detached features, with an optimizer of its own.

    [N, F] -> logits [N, classes].
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features.detach().float())

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of features [V * B, F] for labels int64 [B]; images labelled -1 do not count."""
        labels = labels.repeat(len(features) // len(labels))
        losses = F.cross_entropy(self(features), labels, ignore_index=-1, reduction="sum")
        return losses / (labels >= 0).sum().clamp(min=1)
