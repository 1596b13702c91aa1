"""The number of threads of a loader, and of torch beside it."""

import contextlib
import os
from collections.abc import Generator

import torch

from pipelines.config import DataConfig

__all__ = ["single_thread", "worker_count"]


@contextlib.contextmanager
def single_thread() -> Generator[None]:
    """Let torch compute only on the calling thread. While decoders keep all cores busy, a small tensor loses far more
    time waiting for other threads than they save. Also works as a decorator.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def worker_count(data: DataConfig) -> int:
    """``data.workers``; if 0, this process's share of the machine's cores.

    torchrun, the parent process, may use all cores of the run; with ``--numa-binding`` this process may use fewer.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    own = len(os.sched_getaffinity(0))
    share = own if processes == 1 else min(own, len(os.sched_getaffinity(os.getppid())) // processes)
    return data.workers or max(1, share)
