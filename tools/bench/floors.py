"""What the hardware gives at most, measured: arithmetic, memory, the way to the device; and what a step asks of it."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipelines.batch import Batch
from tools.bench.timing import Rate, Timer
from vssl.engine.step import TrainStep

__all__ = ["copy_bandwidth", "count_flops", "matrix_rate", "memory_bandwidth"]

_BYTES = 2**28  # of the block that bandwidths are measured with: far more than any cache holds


def count_flops(step: TrainStep, batch: Batch) -> float:
    """Floating-point operations per image, of teacher, student and backward; a multiplication and an addition are two.

    Counted in the matrix products and convolutions of ``step.backward`` on a few images, without the augmentation's.
    The step must not be compiled yet.
    """
    few = Batch(*(part[: 4 * step.config.train.accumulate] for part in batch))
    with FlopCounterMode(display=False) as whole:
        step.backward(few)
    with FlopCounterMode(display=False) as views:
        step.views(few.pixels, few.size, few.index)
    return (whole.get_total_flops() - views.get_total_flops()) / len(few.index)


def matrix_rate(timer: Timer, dtype: torch.dtype) -> Rate:
    """Operations per second of one large product of random square matrices."""
    side = 8192 if timer.device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=timer.device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)

    def multiply() -> int:
        torch.mm(left, right, out=out)
        return 2 * side**3

    return timer.rate(multiply)


def memory_bandwidth(timer: Timer) -> Rate:
    """Bytes per second, those read and those written, of copying a large block within the device's memory."""
    return _copies(timer, torch.zeros(_BYTES, dtype=torch.uint8, device=timer.device), 2 * _BYTES)


def copy_bandwidth(timer: Timer) -> Rate:
    """Bytes per second from pinned host memory to a GPU."""
    return _copies(timer, torch.zeros(_BYTES, dtype=torch.uint8).pin_memory(), _BYTES)


def _copies(timer: Timer, source: torch.Tensor, moved: int) -> Rate:
    target = torch.empty(_BYTES, dtype=torch.uint8, device=timer.device)

    def copy() -> int:
        target.copy_(source, non_blocking=True)
        return moved

    return timer.rate(copy)
