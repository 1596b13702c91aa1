"""Save checkpoints while the training goes on."""

import itertools
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pipelines.errors import UserError
from vssl.engine.checkpoint import Checkpoints

__all__ = ["Saver"]


class Saver:
    """Writes checkpoints in a thread, at most one at a time. A context manager, which waits for the last one.

    ``save`` copies the state within the memory of its device and returns; the thread copies it to the host and writes
    the file. The copies are made at the first save and used again: one on the device and, for a GPU, one in the host's
    pinned memory, each as large as the state (weights, teacher, optimizer's state and buffers).

    A write that fails raises UserError in the next ``save``, in ``finish`` or at the end of the context. If the context
    ends by another error, that one is raised, and the failed write is a line on standard error.

    Args:
        checkpoints: where to write.
        device: of the training.
    """

    def __init__(self, checkpoints: Checkpoints, device: torch.device) -> None:
        self._checkpoints = checkpoints
        self._thread = ThreadPoolExecutor(1, "saver")
        self._writing: Future | None = None
        self._copies = _Copies()
        self._host: _Copies | None = None
        self._stream = None
        if device.type == "cuda":
            self._host, self._stream = _Copies(pinned=True), torch.cuda.Stream(device)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save ``state``: nested dicts and lists of tensors and plain values, which may change after the call.

        Waits until the checkpoint before is written. Raises UserError if it could not be written.
        """
        self.finish()
        leaves, structure = pytree.tree_flatten(state)
        copies = self._copies.take(leaves)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())  # until the copies are made
        self._writing = self._thread.submit(self._write, step, copies, structure)

    def _write(self, step: int, leaves: list[Any], structure: pytree.TreeSpec) -> None:
        if self._stream is not None and self._host is not None:
            with torch.cuda.stream(self._stream):
                leaves = self._host.take(leaves)
            self._stream.synchronize()
        self._checkpoints.save(step, pytree.tree_unflatten(leaves, structure))

    def finish(self) -> None:
        """Wait until the last checkpoint is written. Raises UserError if it could not be written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._thread:  # which ends
            try:
                self.finish()
            except UserError as failure:
                if error is None:
                    raise
                print(f"not saved: {failure}", file=sys.stderr)


class _Copies:
    """Copies of tensors in memory that is allocated once.

    Args:
        pinned: the copies are in pinned memory of the host, not on the tensors' devices.
    """

    def __init__(self, pinned: bool = False) -> None:
        self._pinned = pinned
        self._memory: list[Tensor] = []

    def take(self, leaves: Sequence[Any]) -> list[Any]:
        """``leaves`` with every tensor replaced by its copy; the same tensors in every call."""
        tensors = [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
        if not self._memory:
            place = {"device": "cpu", "pin_memory": True} if self._pinned else {}
            self._memory = [torch.empty_like(tensor, **place) for tensor in tensors]
        pairs = sorted(zip(self._memory, tensors, strict=True), key=lambda pair: str(pair[0].dtype))
        for _, group in itertools.groupby(pairs, key=lambda pair: pair[0].dtype):  # few kernels: one type at a time
            own, theirs = zip(*group, strict=True)
            torch._foreach_copy_(own, theirs, non_blocking=True)
        memory = iter(self._memory)
        return [next(memory) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
