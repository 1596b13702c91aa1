"""Work ahead on threads, hand out in order."""

import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, wait
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pipelines.formats.arrays import unaligned

__all__ = ["BufferPool", "run_ahead"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_ahead(
    start: Callable[[Item], tuple[Result, list[Future]]], items: Iterable[Item], ahead: int
) -> Generator[Result]:
    """Yield a result for each item, in order, while work on the next ``ahead`` items is in progress.

    Args:
        start: begins work on an item and returns at once: the result, which may be used when all futures are done.
        items: what to work on; an item is taken only when its work starts.
        ahead: at least 1.

    A failed future's exception is raised instead of its result. However the iteration ends, no work is left running.
    """
    items = iter(items)
    under_way: deque[tuple[Result, list[Future]]] = deque()
    waiting: list[Future] = []

    def refill() -> None:
        while len(under_way) < ahead and (item := next(items, None)) is not None:
            under_way.append(start(item))

    try:
        refill()
        while under_way:
            result, waiting = under_way.popleft()
            refill()
            for future in waiting:
                future.result()
            yield result
    finally:
        futures = [*waiting, *(future for _, pending in under_way for future in pending)]
        for future in futures:
            future.cancel()
        wait(futures)


class BufferPool:
    """Gives uint8 tensors of one shape, and reuses their memory once no tensor or array shares it.

    Fresh memory for every batch would cost page faults: several percent of the decoding time.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._free: list[np.ndarray] = []

    def take(self) -> Tensor:
        """A tensor of arbitrary content."""
        memory = self._free.pop() if self._free else unaligned(self._shape)
        lent = memory[:]  # kept alive only by the tensor's storage
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return torch.from_numpy(lent)

    def clear(self) -> None:
        self._free.clear()
