"""The whole training step as one CUDA graph: captured once, then replayed with new data in the same memory."""

from collections.abc import Callable
from typing import Any

import torch

from pipelines.batch import Batch
from vssl.runtime.graphs import capture, warm_up_calls

__all__ = ["CapturedStep"]


class CapturedStep:
    """Runs ``step`` directly for ``warm_up_calls(distributed)`` full batches, then replays a graph of it.

    The warm-up steps train too. A batch of another size (the last of an epoch with
    ``data.drop_last=false``) is never captured: it runs directly.

    Args:
        step: trains on a batch.
        images: number of images of a full batch on this process.
        distributed: whether it exchanges gradients.
    """

    def __init__(self, step: Callable[[Batch], None], images: int, distributed: bool = False) -> None:
        self.step, self.images, self.warm_up = step, images, warm_up_calls(distributed)
        self._full_batches = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._static: Any = None  # the batch that the graph reads
        self._stream = torch.cuda.Stream()

    @property
    def captured(self) -> bool:
        """Whether the graph exists and full batches are replayed."""
        return self._graph is not None

    def __call__(self, batch: Batch) -> None:
        full = len(batch.index) == self.images
        self._full_batches += full
        if full and self._graph is None and self._full_batches > self.warm_up:
            self._static = Batch(*(part.clone() for part in batch))
            self._graph = capture(lambda: self.step(self._static), self._stream)
        if full and self._graph is not None:
            torch._foreach_copy_(list(self._static), list(batch))
            self._graph.replay()
            return
        # On the capture's stream, to allocate the gradients on it.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self.step(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        for part in batch:
            part.record_stream(self._stream)
