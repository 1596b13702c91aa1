"""Keep the host from running far ahead of the GPU."""

import itertools

import torch

__all__ = ["RunAhead"]


class RunAhead:
    """Lets the host queue at most ``steps`` steps that the GPU has not finished; on a CPU it does nothing.

    A few are enough to hide the host's work. With more, batches fill the GPU's memory, and a signal or an evaluation
    waits until the queue is empty.
    """

    def __init__(self, device: torch.device, steps: int = 4) -> None:
        on_gpu = device.type == "cuda"
        # blocking: the host sleeps instead of spinning, because loaders need its cores.
        self._events = itertools.cycle([torch.cuda.Event(blocking=True) for _ in range(steps)] if on_gpu else [])

    def limit(self) -> None:
        """Call after every step: waits for the one ``steps`` calls ago."""
        for event in itertools.islice(self._events, 1):  # none on a CPU
            event.synchronize()  # returns at once if it was never recorded
            event.record()
