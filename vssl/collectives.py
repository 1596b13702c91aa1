"""Exchanges between processes that a network takes part in: differentiable, one node of a compiled graph each."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Peers", "gather_equal"]


@dataclass(frozen=True)
class Peers:
    """The processes that share every batch, as a method sees them; ``Peers()`` is a single process."""

    rank: int = 0
    size: int = 1

    def gather(self, rows: Tensor) -> Tensor:
        """Rows [n, ...] of all processes, in the order of ranks: [size * n, ...]; see ``gather_equal``."""
        return gather_equal(rows) if self.size > 1 else rows

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes of tensors of one shape."""
        return self.gather(values[None]).mean(dim=0) if self.size > 1 else values


# Registered as a torch operator, so that it stays one node of a compiled graph.
@torch.library.custom_op("vssl::gather_equal", mutates_args=())
def gather_equal(rows: Tensor) -> Tensor:
    """Rows [n, ...] of all processes, in the order of ranks: [size * n, ...]; n is the same on each. Differentiable:
    the gradient of a row is the sum of its gradients on all processes."""
    rows = rows.contiguous()
    gathered = rows.new_empty((dist.get_world_size() * rows.shape[0], *rows.shape[1:]))
    dist.all_gather_into_tensor(gathered, rows)
    return gathered


@gather_equal.register_fake
def _(rows: Tensor) -> Tensor:
    return rows.new_empty((dist.get_world_size() * rows.shape[0], *rows.shape[1:]))


@torch.library.custom_op("vssl::scatter_sum", mutates_args=())
def _scatter_sum(gradient: Tensor) -> Tensor:
    """The backward pass: sum the gradients over all processes and return the rows of this process."""
    gradient = gradient.contiguous()
    own = gradient.new_empty((gradient.shape[0] // dist.get_world_size(), *gradient.shape[1:]))
    dist.reduce_scatter_tensor(own, gradient)
    return own


@_scatter_sum.register_fake
def _(gradient: Tensor) -> Tensor:
    return gradient.new_empty((gradient.shape[0] // dist.get_world_size(), *gradient.shape[1:]))


gather_equal.register_autograd(lambda context, gradient: _scatter_sum(gradient))
