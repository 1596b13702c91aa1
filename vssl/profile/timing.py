"""Timing: a warm-up, then several blocks of calls; the median of the blocks and their spread."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from vssl.runtime.graphs import capture, warm_up_calls
from vssl.runtime.processes import World

__all__ = ["Rate", "Timer", "replayable"]


@dataclass(frozen=True)
class Rate:
    """Work done per second; low and high are the slowest and the fastest block."""

    per_second: float  # median over the blocks
    low: float
    high: float
    repeats: int  # blocks
    milliseconds: float  # per call, in the median block
    cpu_cores: float  # kept busy by this process without its worker processes, in the median block

    def report(self) -> dict:
        """Plain values for a report of images."""
        return {"images_per_second": self.per_second, "low": self.low, "high": self.high, "repeats": self.repeats}


@dataclass(frozen=True)
class Timer:
    """Times functions that may leave work queued on ``device``.

    Args:
        repeats: number of blocks.
        seconds: how long a block should last; it has at least one call.
        world: the processes that time together. Each makes the same calls; their work is added up.
    """

    device: torch.device
    repeats: int
    seconds: float
    world: World = field(default_factory=World)

    def rate(self, call: Callable[[], float]) -> Rate:
        """Time ``call``, which returns how much it did (images, bytes, operations)."""
        return self.rates({"": call})[""]

    def rates(self, calls: Mapping[str, Callable[[], float]]) -> dict[str, Rate]:
        """Time several calls, a block of each in turn: other work on the machine then affects all alike."""
        counts = {name: self._calls_a_block(call) for name, call in calls.items()}
        blocks: dict[str, list[tuple[float, float, float]]] = {name: [] for name in calls}
        for _ in range(self.repeats):
            for name, call in calls.items():
                blocks[name].append(self._block(call, counts[name]))
        return {name: self._summary(blocks[name], counts[name]) for name in calls}

    def _calls_a_block(self, call: Callable[[], float]) -> int:
        """Warm up, then find how many calls last ``seconds``."""
        # On a GPU a captured step replays its graph after the warm-up.
        for _ in range(warm_up_calls(self.world.distributed) + 2 if self.device.type == "cuda" else 1):
            call()
        calls = 1
        while (elapsed := self._block(call, calls)[1]) < self.seconds / 2:
            calls *= 2
        return max(1, round(calls * self.seconds / elapsed))

    def _summary(self, blocks: list[tuple[float, float, float]], calls: int) -> Rate:
        rates = [done / elapsed for done, elapsed, _ in blocks]
        return Rate(
            per_second=statistics.median(rates),
            low=min(rates),
            high=max(rates),
            repeats=self.repeats,
            milliseconds=1000 * statistics.median(elapsed for _, elapsed, _ in blocks) / calls,
            cpu_cores=statistics.median(busy / elapsed for _, elapsed, busy in blocks),
        )

    def _block(self, call: Callable[[], float], calls: int) -> tuple[float, float, float]:
        """Work done by all processes, elapsed seconds, and CPU seconds (means over the processes)."""
        self._synchronize()
        self.world.agree()  # all begin together
        started, busy = time.perf_counter(), time.process_time()
        done = sum(call() for _ in range(calls))
        self._synchronize()
        mine = {"done": done, "elapsed": time.perf_counter() - started, "busy": time.process_time() - busy}
        mean = self.world.mean(mine)
        return self.world.size * mean["done"], mean["elapsed"], mean["busy"]

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def replayable(work: Callable[[], object], device: torch.device, distributed: bool = False) -> Callable[[], object]:
    """``work`` as the training step runs it: on a GPU captured as a CUDA graph and replayed, to avoid the cost
    of launching kernels; on a CPU unchanged."""
    if device.type != "cuda":
        return work
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(warm_up_calls(distributed)):
            work()
    torch.cuda.current_stream(device).wait_stream(stream)
    return capture(work, stream).replay
