"""How many threads: of a loader, and of torch beside them."""

import contextlib
import os
from collections.abc import Generator

import torch

from pipelines.config import DataConfig

__all__ = ["single_thread", "worker_count"]


@contextlib.contextmanager
def single_thread() -> Generator[None]:
    """Let torch compute on the calling thread alone: beside busy decoders, waiting for others costs a small tensor far
    more than they save. May decorate a function.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def worker_count(data: DataConfig) -> int:
    """``data.workers``, or this rank's share of the cores that the process may use."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return data.workers or max(1, cores)
