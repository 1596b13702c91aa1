"""The limits of the hardware, measured (arithmetic, memory, copies to the device), and the arithmetic of a step."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipelines.batch import Batch
from vssl.engine.step import TrainStep
from vssl.profile.timing import Rate, Timer

__all__ = ["copy_bandwidth", "count_flops", "matrix_rate", "memory_bandwidth"]

_BYTES = 2**28  # copied to measure bandwidths: far more than any cache holds


def count_flops(step: TrainStep, batch: Batch) -> float:
    """Floating-point operations per image of teacher, student and backward; a multiply-add counts as two.

    They are counted in the matrix products and convolutions of ``step.backward`` on a few images, without the
    augmentation, as they are computed: on a GPU the zeros of ``vssl.models.stem`` count too. The step must not be
    compiled yet.
    """
    few = Batch(*(part[: 4 * step.config.train.accumulate] for part in batch))
    with FlopCounterMode(display=False) as whole:
        step.backward(few)
    with FlopCounterMode(display=False) as views:
        step.views(few.pixels, few.size, few.index)
    return (whole.get_total_flops() - views.get_total_flops()) / len(few.index)


def matrix_rate(timer: Timer, dtype: torch.dtype) -> Rate:
    """Floating-point operations per second of a product of two large random square matrices."""
    side = 8192 if timer.device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=timer.device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)

    def multiply() -> int:
        torch.mm(left, right, out=out)
        return 2 * side**3

    return timer.rate(multiply)


def memory_bandwidth(timer: Timer) -> Rate:
    """Bytes per second, read and written bytes together, of copying a large block within the device's memory."""
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
