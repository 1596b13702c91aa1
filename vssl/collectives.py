"""Differentiable exchanges between processes; each one is a single node of a compiled graph."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Exchange", "Peers", "dry_run", "gather_equal", "is_dry_run"]


@dataclass(frozen=True)
class Peers:
    """The processes that share every batch, as a method sees them; ``Peers()`` is a single process."""

    distributed: bool = False  # whether anything is exchanged

    def gather(self, rows: Tensor) -> Tensor:
        """Rows [n, ...] of all processes, in the order of ranks: [size * n, ...]; see ``gather_equal``."""
        return gather_equal(rows) if self.distributed else rows

    def own_rows(self, rows: Tensor) -> Tensor:
        """Indices of this process's rows [n, ...] in the result of ``gather``: int64 [n]."""
        return _own_rows(rows.detach()) if self.distributed else torch.arange(len(rows), device=rows.device)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes of tensors of one shape."""
        return self.gather(values[None]).mean(dim=0) if self.distributed else values


class Exchange(NamedTuple):
    """An exchange that a dry run left out."""

    operator: str
    shape: tuple[int, ...]  # of its argument
    bytes: int  # that this process hands over


_skipped: list[Exchange] | None = None  # of the current dry run


@contextlib.contextmanager
def dry_run() -> Iterator[list[Exchange]]:
    """Context in which nothing is exchanged: every process uses its own rows in place of the others' rows.

    The shapes stay the same. A process can therefore compile and try a step without waiting for the others, which may
    have failed. Yields the list of the exchanges left out, in their order.
    """
    global _skipped
    _skipped = []
    try:
        yield _skipped
    finally:
        _skipped = None


def is_dry_run() -> bool:
    """Whether the code runs inside ``dry_run``."""
    return _skipped is not None


# As torch operators they stay single nodes of a compiled graph. No node depends on the process's rank: all processes
# compile the same graph and make their exchanges in the same order.
@torch.library.custom_op("vssl::gather_equal", mutates_args=())
def gather_equal(rows: Tensor) -> Tensor:
    """Rows [n, ...] of all processes, in the order of ranks: [size * n, ...]; n is the same on each. Differentiable:
    the gradient of a row is the sum of its gradients on all processes."""
    rows, size = rows.contiguous(), dist.get_world_size()
    if _skipped is not None:
        _skipped.append(Exchange("gather_equal", tuple(rows.shape), rows.nbytes))
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
    if _skipped is not None:
        _skipped.append(Exchange("scatter_sum", tuple(gradient.shape), gradient.nbytes))
        return torch.stack(gradient.chunk(size)).sum(dim=0)
    own = gradient.new_empty((gradient.shape[0] // size, *gradient.shape[1:]))
    dist.reduce_scatter_tensor(own, gradient)
    return own


@_scatter_sum.register_fake
def _(gradient: Tensor) -> Tensor:
    return gradient.new_empty((gradient.shape[0] // dist.get_world_size(), *gradient.shape[1:]))


gather_equal.register_autograd(lambda context, gradient: _scatter_sum(gradient))


@torch.library.custom_op("vssl::own_rows", mutates_args=())
def _own_rows(rows: Tensor) -> Tensor:
    """Indices of this process's rows [n, ...] in the result of ``gather_equal``: int64 [n]."""
    return dist.get_rank() * len(rows) + torch.arange(len(rows), device=rows.device)


@_own_rows.register_fake
def _(rows: Tensor) -> Tensor:
    return rows.new_empty(len(rows), dtype=torch.int64)
