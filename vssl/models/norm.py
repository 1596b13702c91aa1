"""BatchNorm that can keep its running statistics unchanged, and can take batch statistics over all processes."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipelines.errors import UserError
from vssl.collectives import gather_equal

__all__ = ["BatchNorm1d", "BatchNorm2d", "adopt_norms", "freeze_statistics", "synchronise_statistics"]


class _SharedNorm(_BatchNorm):
    """Adds a switch to torch's BatchNorm; the keys of the state dict stay the same.

    ``synchronised``: in training mode take the statistics over all processes, which must have equally many samples.
    (torch.nn.SyncBatchNorm does not run on CPUs.)
    """

    synchronised: bool = False

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.synchronised):
            return super().forward(x)
        y = self._normalise(x)
        # timm's BatchNormAct2d applies these two afterwards.
        for name in ("drop", "act"):
            if hasattr(self, name):
                y = getattr(self, name)(y)
        return y

    def _normalise(self, x: Tensor) -> Tensor:
        """x [N, C, ...], normalised in float32 with the mean and variance of all processes' N."""
        channels = x.shape[1]
        dims = [d for d in range(x.ndim) if d != 1]
        parts = gather_equal(torch.stack(torch.var_mean(x.float(), dims, correction=0))[None])
        variances, means = parts.unbind(1)
        # Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance, 1983, for parts of equal size.
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        if self.track_running_stats:
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
    """``torch.nn.BatchNorm1d`` whose statistics can be synchronised."""


class BatchNorm2d(_SharedNorm, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` whose statistics can be synchronised."""


@functools.cache
def _shared(norm: type) -> type:
    """The class ``norm`` with the switch added."""
    return {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d}.get(norm) or type(
        f"Shared{norm.__name__}", (_SharedNorm, norm), {}
    )


def adopt_norms(module: nn.Module) -> None:
    """Convert every BatchNorm of torch or timm inside ``module``, in place, so that the functions below work on it.

    Norms without running statistics (LayerNorm, GroupNorm) stay as they are.

    Raises:
        UserError: a norm of another class has running statistics, which could be neither frozen nor synchronised.
    """
    known = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
    for name, part in module.named_modules():
        if isinstance(part, _SharedNorm):
            continue
        kind: Any = type(part)
        if kind in known or (isinstance(part, nn.BatchNorm2d) and kind.__name__ == "BatchNormAct2d"):
            part.__class__ = _shared(kind)
        elif getattr(part, "running_mean", None) is not None:
            raise UserError(
                f"{kind.__name__} at {name}: its running statistics could be neither frozen in the teacher nor "
                "synchronised; choose another model.backbone"
            )


def freeze_statistics(module: nn.Module) -> None:
    """Let every BatchNorm inside ``module`` normalise with the batch's statistics in training mode, and keep its
    buffers unchanged. The teacher needs this: its buffers are moving averages of the student's."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            # Unlike the constructor argument of this name, this keeps the buffers, and evaluation mode uses them.
            part.track_running_stats = False


def synchronise_statistics(module: nn.Module) -> None:
    """Let every BatchNorm inside ``module`` take its statistics over all processes."""
    for part in module.modules():
        if isinstance(part, _SharedNorm):
            part.synchronised = True
