"""BatchNorm that can keep its running statistics unchanged, and normalise each view apart or over all processes."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from pipelines.errors import UserError
from vssl.collectives import gather_equal

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "adopt_norms",
    "freeze_statistics",
    "restore_norms",
    "separate_views",
    "synchronise_statistics",
]


class _SharedNorm(_BatchNorm):
    """torch's BatchNorm with two switches; the keys of the state dict stay the same.

    ``images``: in training mode a batch [V * images, C, ...] holds V views of so many images, one view after the other,
    and each view is normalised with its own statistics, as if it were a batch of its own. The other layers can thus
    take all views of one size at once. None: the batch is a single view.
    ``synchronised``: in training mode take the statistics over all processes, which must have equally many samples.
    (torch.nn.SyncBatchNorm does not run on CPUs.)

    ``num_batches_tracked``, which torch needs only for ``momentum=None``, is not counted in compiled code and with
    ``synchronised``.
    """

    images: int | None = None
    synchronised: bool = False

    def forward(self, x: Tensor) -> Tensor:
        if self.training and (self.synchronised or torch.compiler.is_compiling()):
            y = self._normalise(x)
        elif self.training:
            y = torch.cat([_BatchNorm.forward(self, view) for view in x.chunk(self._views(x))])
        else:
            y = _BatchNorm.forward(self, x)
        # timm's BatchNormAct2d applies these two afterwards.
        for name in ("drop", "act"):
            if hasattr(self, name):
                y = getattr(self, name)(y)
        return y

    def _normalise(self, x: Tensor, signs: Tensor | None = None) -> Tensor:
        """x [V * B, C, ...], normalised by ``_Normalise``; with ``signs`` as in ``BatchNorm2d.of_maxima``. Moves the
        running statistics."""
        views = self._views(x)
        weight = self.weight if signs is None else self.weight * signs
        y, mean, variance = _normalise(x, weight, self.bias, self.eps, views, self.synchronised, signs is not None)
        if self.track_running_stats:
            with torch.no_grad():
                for view in range(views):
                    self.running_mean.lerp_(mean[view] if signs is None else mean[view] * signs, self.momentum)
                    self.running_var.lerp_(variance[view], self.momentum)
        return y

    def _views(self, x: Tensor) -> int:
        """The number of views in the batch x [V * B, C, ...]."""
        return 1 if self.images is None else len(x) // self.images


class _Normalise(torch.autograd.Function):
    """Batch normalisation of every view apart (Ioffe and Szegedy, arXiv 1502.03167, section 3), in float32.

    Computes all views at once, in operations that the compiler fuses with their neighbours: splitting and concatenating
    would read and write them once more, and autograd's own derivative has more passes.
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
        pooled: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [views * B, C, ...] -> the same, normalised (with ``pooled``, for weights of at least 0: after
        max-pooling); means and unbiased variances [views, C]."""
        rows = x.float()
        variance, mean = torch.var_mean(_apart(rows, views), _all_but_views_and_channels(x), correction=0)
        count = x.numel() // mean.numel()
        if synchronised:
            parts = gather_equal(torch.stack([variance, mean])[None])  # [processes, 2, views, C]
            (variances, means), count = parts.unbind(1), count * len(parts)
            # Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance, 1983, for parts of equal size.
            mean = means.mean(0)
            variance = variances.mean(0) + (means - mean).square().mean(0)
        inverse = (variance + eps).rsqrt()
        kept, places = F.max_pool2d(x, 3, 2, 1, return_indices=True) if pooled else (x, None)
        y = (kept.float() - _for_each_row(mean, x)) * _for_each_row(inverse if weight is None else inverse * weight, x)
        if bias is not None:
            y = y + _for_each_row(bias[None], x)
        context.save_for_backward(x, kept, places, weight, mean, inverse)
        context.count, context.synchronised = count, synchronised
        variance = variance * (count / (count - 1))
        context.mark_non_differentiable(mean, variance)
        return y.to(x.dtype), mean, variance

    @staticmethod
    def backward(context: Any, gradient: Tensor, *_: Any) -> tuple:
        x, kept, places, weight, mean, inverse = context.saved_tensors

        def normalised(part: Tensor) -> Tensor:
            return (part.float() - _for_each_row(mean, x)) * _for_each_row(inverse, x)

        g, of_kept, dims = gradient.float(), normalised(kept), _all_but_views_and_channels(x)
        sums = torch.stack([_apart(part, len(mean)).sum(dims) for part in (g, g * of_kept)])  # [2, views, C]
        of_bias, of_weight = (None, None) if weight is None else sums.sum(dim=1)
        if context.synchronised:
            sums = gather_equal(sums[None]).sum(0)
        mean_g, mean_product = (_for_each_row(part / context.count, x) for part in sums)
        if places is None:
            rows = of_kept
        else:  # Values that pooling drops have no gradient of their own, but contribute to mean and variance.
            pool = (3, 2, 1, 1, False)
            g = torch.ops.aten.max_pool2d_with_indices_backward(gradient, x, *pool, places).float()
            rows = normalised(x)
        of_x = (g - mean_g - rows * mean_product) * _for_each_row(inverse if weight is None else inverse * weight, x)
        return of_x.to(x.dtype), of_weight, of_bias, None, None, None, None


# One node for Dynamo, which otherwise makes it an operator that DistributedDataParallel cannot cut the graph around.
@torch.compiler.allow_in_graph
def _normalise(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _Normalise.apply(*arguments)


def _apart(rows: Tensor, views: int) -> Tensor:
    """[views * B, C, ...] as [views, B, C, ...]."""
    return rows.unflatten(0, (views, -1))


def _all_but_views_and_channels(x: Tensor) -> list[int]:
    """Dimensions of ``_apart``: all but 0 and 2, for x [views * B, C, ...]."""
    return [1, *range(3, x.ndim + 1)]


def _for_each_row(values: Tensor, x: Tensor) -> Tensor:
    """Values [views, C], repeated for the rows of each view, in the shape in which they broadcast to x."""
    rows = values.repeat_interleave(len(x) // len(values), dim=0)
    return rows.view(*rows.shape, *[1] * (x.ndim - 2))


class BatchNorm1d(_SharedNorm, nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` whose statistics can be those of a view and of all processes."""


class BatchNorm2d(_SharedNorm, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` whose statistics can be those of a view and of all processes."""

    def of_maxima(self, x: Tensor, signs: Tensor) -> Tensor:
        """In training mode ``F.max_pool2d(self(signs * x), 3, 2, 1)``, pooled first: a quarter as much to normalise.

        BatchNorm with a weight of at least 0 is increasing, so it commutes with max pooling. For negative weights we
        negate both the weight and the input. (Of equal maxima another one may get the gradient.)

        Args:
            x: [views * B, C, H, W], times ``signs``.
            signs: [C], -1 where the weight is negative, else 1.
        """
        return self._normalise(x, signs)


@functools.cache
def _shared(norm: type) -> type:
    """The class ``norm`` with the switches added."""
    return {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d}.get(norm) or type(
        f"Shared{norm.__name__}", (_SharedNorm, norm), {}
    )


def adopt_norms(module: nn.Module) -> None:
    """Convert every BatchNorm of torch or timm inside ``module``, in place, for the functions below.

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


def restore_norms(module: nn.Module) -> None:
    """Undo ``adopt_norms``, ``separate_views`` and ``synchronise_statistics``, in place."""
    for part in module.modules():
        if isinstance(part, _SharedNorm):
            part.__class__ = type(part).__bases__[1]
            for switch in ("images", "synchronised"):
                part.__dict__.pop(switch, None)


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


def separate_views(module: nn.Module, images: int) -> None:
    """Let every BatchNorm inside ``module`` expect views of ``images`` images in a batch, one view after the other, and
    normalise each with its own statistics in training mode."""
    for part in module.modules():
        if isinstance(part, _SharedNorm):
            part.images = images
