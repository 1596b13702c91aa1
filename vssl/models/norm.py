"""BatchNorm that can leave its running statistics alone, and take the statistics of all processes' batches."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vssl.collectives import gather_equal

__all__ = ["BatchNorm1d", "BatchNorm2d", "freeze_statistics", "synchronise_statistics"]


class _SharedNorm:
    """Adds two switches to torch's BatchNorm; the keys of the state dict stay.

    ``frozen``: in training mode use the batch's statistics and leave the buffers alone. The teacher needs it: it
    normalises as the student does, but its buffers are the moving average of the student's.

    ``synchronised``: in training mode the batch is that of all processes, which must bring equally many samples.
    (torch.nn.SyncBatchNorm does not run on CPUs.)
    """

    frozen: bool = False
    synchronised: bool = False

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.synchronised:
            return self._forward_synchronised(x)
        if self.training and self.frozen:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return super().forward(x)

    def _forward_synchronised(self, x: Tensor) -> Tensor:
        """x [N, C, ...], normalised in float32 with the mean and variance of all processes' N."""
        channels = x.shape[1]
        dims = [d for d in range(x.ndim) if d != 1]
        parts = gather_equal(torch.stack(torch.var_mean(x.float(), dims, correction=0))[None])
        variances, means = parts.unbind(1)
        # Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance, 1983, for parts of equal size.
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        if not self.frozen:
            count = len(parts) * x.numel() // channels
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
                self.num_batches_tracked.add_(1)
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shape = [1, channels] + [1] * (x.ndim - 2)
        y = (x.float() - mean.view(shape)) * scale.view(shape)
        if self.bias is not None:
            y = y + self.bias.view(shape)
        return y.to(x.dtype)


class BatchNorm1d(_SharedNorm, nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` whose statistics can be frozen and synchronised."""


class BatchNorm2d(_SharedNorm, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` whose statistics can be frozen and synchronised."""


def freeze_statistics(module: nn.Module) -> None:
    """Freeze the running statistics of every BatchNorm inside ``module``."""
    for part in module.modules():
        if isinstance(part, _SharedNorm):
            part.frozen = True


def synchronise_statistics(module: nn.Module) -> None:
    """Let every BatchNorm inside ``module`` take its statistics over all processes."""
    for part in module.modules():
        if isinstance(part, _SharedNorm):
            part.synchronised = True
