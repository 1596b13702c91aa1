"""Exchanges between processes that a network takes part in: differentiable, one node of a compiled graph each."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Exchange", "Peers", "gather_equal", "rehearsal", "rehearsing"]


@dataclass(frozen=True)
class Peers:
    """The processes that share every batch, as a method sees them; ``Peers()`` is a single process."""

    distributed: bool = False  # whether anything is exchanged

    def gather(self, rows: Tensor) -> Tensor:
        """Rows [n, ...] of all processes, in the order of ranks: [size * n, ...]; see ``gather_equal``."""
        return gather_equal(rows) if self.distributed else rows

    def places(self, rows: Tensor) -> Tensor:
        """Where ``gather`` puts the rows [n, ...] of this process: int64 [n]."""
        return _own_places(rows.detach()) if self.distributed else torch.arange(len(rows), device=rows.device)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes of tensors of one shape."""
        return self.gather(values[None]).mean(dim=0) if self.distributed else values


class Exchange(NamedTuple):
    """An exchange that a rehearsal left out."""

    operator: str
    shape: tuple[int, ...]  # of its argument
    bytes: int  # that this process hands over


_rehearsed: list[Exchange] | None = None  # of the rehearsal that is under way


@contextlib.contextmanager
def rehearsal() -> Iterator[list[Exchange]]:
    """Context in which nothing is exchanged: every process takes its own rows for those of the others.

    The shapes are the same, so that a process can compile and try a step without waiting for others, which may have
    failed. Gives the list of the exchanges that would have been made, in their order.
    """
    global _rehearsed
    _rehearsed = []
    try:
        yield _rehearsed
    finally:
        _rehearsed = None


def rehearsing() -> bool:
    """Whether this is a ``rehearsal``."""
    return _rehearsed is not None


# Registered as torch operators, so that each stays one node of a compiled graph. No node depends on the process's rank:
# all processes compile the same graph, which therefore makes its exchanges in the same order.
@torch.library.custom_op("vssl::gather_equal", mutates_args=())
def gather_equal(rows: Tensor) -> Tensor:
    """Rows [n, ...] of all processes, in the order of ranks: [size * n, ...]; n is the same on each. Differentiable:
    the gradient of a row is the sum of its gradients on all processes."""
    rows, size = rows.contiguous(), dist.get_world_size()
    if _rehearsed is not None:
        _rehearsed.append(Exchange("gather_equal", tuple(rows.shape), rows.nbytes))
        return torch.cat([rows] * size)
    gathered = rows.new_empty((size * rows.shape[0], *rows.shape[1:]))
    dist.all_gather_into_tensor(gathered, rows)
    return gathered


@gather_equal.register_fake
def _(rows: Tensor) -> Tensor:
    return rows.new_empty((dist.get_world_size() * rows.shape[0], *rows.shape[1:]))


@torch.library.custom_op("vssl::scatter_sum", mutates_args=())
def _scatter_sum(gradient: Tensor) -> Tensor:
    """The backward pass: sum the gradients over all processes and return the rows of this process."""
    gradient, size = gradient.contiguous(), dist.get_world_size()
    if _rehearsed is not None:
        _rehearsed.append(Exchange("scatter_sum", tuple(gradient.shape), gradient.nbytes))
        return torch.stack(gradient.chunk(size)).sum(dim=0)
    own = gradient.new_empty((gradient.shape[0] // size, *gradient.shape[1:]))
    dist.reduce_scatter_tensor(own, gradient)
    return own


@_scatter_sum.register_fake
def _(gradient: Tensor) -> Tensor:
    return gradient.new_empty((gradient.shape[0] // dist.get_world_size(), *gradient.shape[1:]))


gather_equal.register_autograd(lambda context, gradient: _scatter_sum(gradient))


@torch.library.custom_op("vssl::own_places", mutates_args=())
def _own_places(rows: Tensor) -> Tensor:
    """Where ``gather_equal`` puts this process's rows [n, ...]: int64 [n]."""
    return dist.get_rank() * len(rows) + torch.arange(len(rows), device=rows.device)


@_own_places.register_fake
def _(rows: Tensor) -> Tensor:
    return rows.new_empty(len(rows), dtype=torch.int64)
