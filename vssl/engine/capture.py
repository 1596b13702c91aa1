"""The whole training step as one CUDA graph: captured once, then replayed with new data in the same memory."""

import torch

from pipelines.batch import Batch
from vssl.engine.step import TrainStep

__all__ = ["CapturedStep"]

_WARM_UP = 3  # steps run as usual first: lazy initialisation, compilation and autotuning must not be captured


class CapturedStep:
    """Runs ``step``; from its fourth batch on by replaying a graph, for as long as the batches keep their shape.

    Every step is a training step, the warm-up ones too. A batch of another shape (the last of an epoch with
    ``data.drop_last=false``) runs uncaptured.
    """

    def __init__(self, step: TrainStep) -> None:
        self.step = step
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._static: Batch | None = None
        self._stream = torch.cuda.Stream()

    def __call__(self, batch: Batch) -> None:
        self._calls += 1
        if self._graph is None and self._calls > _WARM_UP:
            self._capture(batch)
        if self._graph is None or any(a.shape != b.shape for a, b in zip(batch, self._static, strict=True)):
            # On the stream of the capture, so that the gradients' memory belongs to it.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self.step(batch)
            torch.cuda.current_stream().wait_stream(self._stream)
            for part in batch:
                part.record_stream(self._stream)
            return
        torch._foreach_copy_(list(self._static), list(batch))
        self._graph.replay()

    def _capture(self, batch: Batch) -> None:
        self._static = Batch(*(part.clone() for part in batch))
        graph = torch.cuda.CUDAGraph()
        # Loaders allocate and wait in threads of their own meanwhile.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self.step(self._static)
        self._graph = graph
