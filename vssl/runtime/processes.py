"""The processes of one run, as torchrun starts them: their ranks, what they exchange, and how they end together."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.errors import UserError
from vssl.collectives import gather_equal
from vssl.runtime.graphs import release_graphs

__all__ = ["World", "join_world"]

_FAREWELL = timedelta(seconds=20)  # how long a failing process waits for the others to notice


class _PeerFailedError(Exception):
    """Another process failed and reports why; this one only has to end. ``code``: the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__("another process of this run failed")
        self.code = code


class World:
    """This process and its place among those of the run. ``World()`` is a single process, which exchanges nothing.

    Decisions of the host (stop, failure) use their own gloo group: the device's queue never waits for them, and a
    failing process can report it whatever the others are doing. All methods but ``set_device`` and ``fail`` are
    collective: every process calls them in the same order. ``agree`` and the methods that call it end this process
    quietly when another one has failed.

    Attributes:
        rank, size, local_rank: the number of this process, of all processes, and its number on this machine.
        restarts: how often torchrun has restarted the processes (``--max-restarts``).
        distributed: whether anything is exchanged, with other processes or (``join_world(alone=True)``) with itself.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        local_rank: int = 0,
        restarts: int = 0,
        control: dist.ProcessGroup | None = None,
    ) -> None:
        self.rank, self.size, self.local_rank, self.restarts = rank, size, local_rank, restarts
        self.distributed = size > 1 or control is not None
        self._control = control

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes, logs and exports."""
        return self.rank == 0

    def set_device(self, device: torch.device) -> None:
        """Select this process's own GPU. Raises UserError if the machine has fewer GPUs than processes."""
        if self.size > 1 and device.type == "cuda":
            if self.local_rank >= torch.cuda.device_count():
                raise UserError(
                    f"every process needs a GPU of its own, this machine has {torch.cuda.device_count()}: "
                    "start fewer processes, or set train.device=cpu"
                )
            torch.cuda.set_device(self.local_rank)

    def agree(self, signal: int = 0) -> int:
        """Wait for every process and return the greatest ``signal``; all processes then react at the same step."""
        if not self.distributed:
            return signal
        signal, user_error, crash = self._vote(signal, 0, 0)
        if user_error or crash:
            raise _PeerFailedError(2 if user_error else 1)
        return signal

    def broadcast(self, value: Any) -> Any:
        """The first process's ``value``; the others' are ignored."""
        if not self.distributed:
            return value
        self.agree()
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._control)
        return values[0]

    def collect(self, value: Any) -> list:
        """The ``value`` of every process, in the order of ranks."""
        if not self.distributed:
            return [value]
        self.agree()
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Means over the processes, name by name; the names are the same on all."""
        if not self.distributed:
            return values
        self.agree()
        sums = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(sums, group=self._control)
        return dict(zip(values, (sums / self.size).tolist(), strict=True))

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the processes, in place, of tensors of one shape on their device."""
        if self.distributed:
            self.agree()
            dist.all_reduce(values)
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """The rows [n, ...] of all processes, in the order of ranks; n may differ and be 0."""
        if not self.distributed:
            return rows
        self.agree()
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = len(rows)
        dist.all_reduce(counts, group=self._control)
        padded = rows.new_zeros((int(counts.max()), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = gather_equal(padded).split(len(padded))
        return torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])

    def all(self, flag: Tensor) -> Tensor:
        """Whether a boolean scalar on the device is true on every process. The host does not wait."""
        if not self.distributed:
            return flag
        votes = flag.to(torch.int32)
        dist.all_reduce(votes, dist.ReduceOp.MIN)
        return votes.bool()

    def average(self, tensors: list[Tensor]) -> None:
        """Set float32 tensors to their means over the processes, in place. The host does not wait."""
        if self.distributed and tensors:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(flat)
            parts = (flat / self.size).split([tensor.numel() for tensor in tensors])
            torch._foreach_copy_(tensors, [p.view_as(t) for p, t in zip(parts, tensors, strict=True)])

    def _vote(self, signal: int, user_error: int, crash: int, timeout: timedelta | None = None) -> list[int]:
        """Elementwise maximum over the processes."""
        votes = torch.tensor([signal, user_error, crash])
        work = dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._control, async_op=True)
        work.wait(timeout) if timeout else work.wait()
        return votes.tolist()

    def fail(self, error: BaseException) -> bool:
        """Tell the others that this process ends with ``error``, and return whether it should report it. Of the
        processes with a ``UserError`` only the first one reports; a process that crashed always does."""
        mine = self.size - self.rank if isinstance(error, UserError) else 0
        try:
            _, first, _ = self._vote(0, mine, int(mine == 0), _FAREWELL)
        except RuntimeError:  # the others have ended or do not answer
            return True
        return mine in (0, first)


@contextlib.contextmanager
def join_world(alone: bool = False) -> Iterator[World]:
    """This process's ``World``: a single process, or one of those that torchrun started.

    Only the first process prints. A ``UserError`` is raised on one process, however many have it, and ends all of
    them with exit code 2. Other exceptions are raised where they happen and end the other processes with 1.

    Args:
        alone: a single process exchanges with itself all that several would exchange, to measure what that costs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if size == 1 and not alone:
        yield World(restarts=restarts)
        return
    store, rank, _ = next(dist.rendezvous("env://")) if size > 1 else (dist.HashStore(), 0, 1)
    # torchrun keeps one store for all its attempts, which still holds the addresses of dead processes: each attempt
    # needs its own prefix. Every machine's torchrun counts restarts for itself: the count is a common name only on a
    # single machine.
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if here == size:
        store = dist.PrefixStore(f"attempt-{restarts}", store)
    # NCCL requires a GPU per process at once. With fewer, ``set_device`` raises a better message, or the CPU is used.
    nccl = torch.cuda.is_available() and dist.is_nccl_available() and torch.cuda.device_count() >= here
    dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", store=store, rank=rank, world_size=size)
    world = World(
        rank=rank,
        size=size,
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        restarts=restarts,
        control=dist.new_group(backend="gloo"),
    )
    try:
        with contextlib.nullcontext() if world.is_main else _silence():
            yield world
            world.agree()  # no process leaves while another one still works
    except SystemExit:  # from argparse, the same on every process
        raise
    except _PeerFailedError as failure:
        raise SystemExit(failure.code) from None
    except BaseException as error:
        if world.fail(error):
            raise
        raise SystemExit(2) from None
    finally:
        release_graphs()
    dist.destroy_process_group()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield
