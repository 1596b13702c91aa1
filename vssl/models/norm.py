"""BatchNorm that can normalise with batch statistics without touching its running statistics."""

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BatchNorm1d", "BatchNorm2d", "freeze_statistics"]


class _FrozenStatistics:
    """Adds ``frozen``: in training mode use the batch's statistics and leave the buffers alone.

    The teacher needs it: it normalises as the student does, but its buffers are the moving average of the student's.
    """

    frozen: bool = False

    def forward(self, x: Tensor) -> Tensor:
        if self.frozen and self.training:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return super().forward(x)


class BatchNorm1d(_FrozenStatistics, nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` whose running statistics can be frozen."""


class BatchNorm2d(_FrozenStatistics, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` whose running statistics can be frozen."""


def freeze_statistics(module: nn.Module) -> None:
    """Freeze the running statistics of every BatchNorm inside ``module``."""
    for part in module.modules():
        if isinstance(part, _FrozenStatistics):
            part.frozen = True
