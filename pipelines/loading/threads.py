"""How many threads a loader uses, and how many torch uses beside them."""

import contextlib
import os
from collections.abc import Generator

import torch

from pipelines.config import DataConfig

__all__ = ["single_thread", "worker_count"]


@contextlib.contextmanager
def single_thread() -> Generator[None]:
    """Let torch compute only on the calling thread. While decoders keep all cores busy, waiting for other threads costs
    a small tensor far more time than they save. Also works as a decorator.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def worker_count(data: DataConfig) -> int:
    """``data.workers``; if 0, the cores that this process may use, shared among the processes of this machine."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return data.workers or max(1, cores)
