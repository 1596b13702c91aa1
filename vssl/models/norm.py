"""BatchNorm that can keep its running statistics unchanged, and normalise each view apart or over all processes."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipelines.errors import UserError
from vssl.collectives import gather_equal

__all__ = ["BatchNorm1d", "BatchNorm2d", "adopt_norms", "freeze_statistics", "separate_views", "synchronise_statistics"]


class _SharedNorm(_BatchNorm):
    """torch's BatchNorm with two switches; the keys of the state dict stay the same.

    ``views``: in training mode a batch [views * B, C, ...] holds one view after the other, and each view is normalised
    with its own statistics, as if it had come alone. So the other layers can take all views at once.
    ``synchronised``: in training mode take the statistics over all processes, which must have equally many samples.
    (torch.nn.SyncBatchNorm does not run on CPUs.)

    ``num_batches_tracked``, which torch needs only for ``momentum=None``, is not counted in compiled code and with
    ``synchronised``.
    """

    views: int = 1
    synchronised: bool = False

    def forward(self, x: Tensor) -> Tensor:
        if self.training and (self.synchronised or torch.compiler.is_compiling()):
            y = self._normalise(x)
        elif self.training:
            y = torch.cat([_BatchNorm.forward(self, view) for view in x.chunk(self.views)])
        else:
            y = _BatchNorm.forward(self, x)
        # timm's BatchNormAct2d applies these two afterwards.
        for name in ("drop", "act"):
            if hasattr(self, name):
                y = getattr(self, name)(y)
        return y

    def _normalise(self, x: Tensor) -> Tensor:
        """x [views * B, C, ...], normalised by ``_Normalise``; moves the running statistics."""
        y, mean, variance = _normalise(x, self.weight, self.bias, self.eps, self.views, self.synchronised)
        if self.track_running_stats:
            with torch.no_grad():
                for view in range(self.views):
                    self.running_mean.lerp_(mean[view], self.momentum)
                    self.running_var.lerp_(variance[view], self.momentum)
        return y


class _Normalise(torch.autograd.Function):
    """Batch normalisation of every view apart (Ioffe and Szegedy, arXiv 1502.03167, section 3), in float32.

    Written over the views at once, in operations that the compiler fuses with their neighbours: halves and their
    concatenation would be read and written once more, and autograd's own derivative has more passes.
    """

    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        views: int,
        synchronised: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [views * B, C, ...] -> the same, normalised; means and unbiased variances [views, C]."""
        rows = x.float().unflatten(0, (views, -1))
        variance, mean = torch.var_mean(rows, _all_but_views_and_channels(rows), correction=0)
        count = rows.numel() // mean.numel()
        if synchronised:
            parts = gather_equal(torch.stack([variance, mean])[None])  # [processes, 2, views, C]
            (variances, means), count = parts.unbind(1), count * len(parts)
            # Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance, 1983, for parts of equal size.
            mean = means.mean(0)
            variance = variances.mean(0) + (means - mean).square().mean(0)
        inverse = (variance + eps).rsqrt()
        y = (rows - _per_channel(mean, rows)) * _per_channel(inverse if weight is None else inverse * weight, rows)
        if bias is not None:
            y = y + _per_channel(bias[None], rows)
        context.save_for_backward(x, weight, mean, inverse)
        context.views, context.count, context.synchronised = views, count, synchronised
        variance = variance * (count / (count - 1))
        context.mark_non_differentiable(mean, variance)
        # A copy, because autograd does not let ReLU work in place on a view that a Function returns.
        return y.flatten(0, 1).to(x.dtype, copy=True), mean, variance

    @staticmethod
    def backward(context: Any, gradient: Tensor, *_: Any) -> tuple:
        x, weight, mean, inverse = context.saved_tensors
        rows, g = (part.float().unflatten(0, (context.views, -1)) for part in (x, gradient))
        dims = _all_but_views_and_channels(rows)
        normalised = (rows - _per_channel(mean, rows)) * _per_channel(inverse, rows)
        sums = torch.stack([g.sum(dims), (g * normalised).sum(dims)])  # [2, views, C]
        of_bias, of_weight = (None, None) if weight is None else sums.sum(dim=1)
        if context.synchronised:
            sums = gather_equal(sums[None]).sum(0)
        mean_g, mean_product = (_per_channel(part / context.count, rows) for part in sums)
        scale = _per_channel(inverse if weight is None else inverse * weight, rows)
        of_x = (g - mean_g - normalised * mean_product) * scale
        return of_x.flatten(0, 1).to(x.dtype), of_weight, of_bias, None, None, None


# One node for Dynamo, which otherwise makes it an operator that DistributedDataParallel cannot cut the graph around.
@torch.compiler.allow_in_graph
def _normalise(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _Normalise.apply(*arguments)


def _all_but_views_and_channels(rows: Tensor) -> list[int]:
    return [d for d in range(rows.ndim) if d not in (0, 2)]


def _per_channel(values: Tensor, rows: Tensor) -> Tensor:
    """Values [views or 1, C], in the shape in which they broadcast to rows [views, B, C, ...]."""
    return values.view(len(values), 1, -1, *[1] * (rows.ndim - 3))


class BatchNorm1d(_SharedNorm, nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` whose statistics can be those of a view and of all processes."""


class BatchNorm2d(_SharedNorm, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` whose statistics can be those of a view and of all processes."""


@functools.cache
def _shared(norm: type) -> type:
    """The class ``norm`` with the switches added."""
    return {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d}.get(norm) or type(
        f"Shared{norm.__name__}", (_SharedNorm, norm), {}
    )


def adopt_norms(module: nn.Module) -> None:
    """Convert every BatchNorm of torch or timm inside ``module``, in place, so that the functions below work on it.

    Norms without running statistics (LayerNorm, GroupNorm) stay as they are.

    Raises:
        UserError: a norm of another class, or with ``momentum=None``, has running statistics, which could be neither
            frozen nor synchronised.
    """
    known = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
    for name, part in module.named_modules():
        if isinstance(part, _SharedNorm):
            continue
        kind: Any = type(part)
        batch_norm = kind in known or (isinstance(part, nn.BatchNorm2d) and kind.__name__ == "BatchNormAct2d")
        if batch_norm and part.momentum is not None:
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


def separate_views(module: nn.Module, views: int) -> None:
    """Let every BatchNorm inside ``module`` expect ``views`` views in a batch, one after the other, and normalise each
    with its own statistics in training mode."""
    for part in module.modules():
        if isinstance(part, _SharedNorm):
            part.views = views
