"""Compile the step; where that fails, run it eager and say why."""

import sys
import time

import torch

from pipelines.batch import Batch
from vssl.engine.step import TrainStep

__all__ = ["compile_step"]


def compile_step(step: TrainStep, batch: Batch) -> bool:
    """Compile forward and backward of ``step`` for batches like ``batch``, without training on ``batch``.

    Where the compiler fails (no C++ compiler, an operation it does not know), the step stays eager and one line on
    standard error says why.

    Returns:
        Whether the step is compiled now.
    """
    started = time.perf_counter()
    buffers = [buffer.clone() for buffer in step.method.buffers()]
    step.compile()
    try:
        step.warm_up(batch)
    except Exception as error:  # the compiler's errors have no common ancestor
        reason = str(error).strip().split("\n")[0]
        print(f"torch.compile failed, the step runs eager: {type(error).__name__}: {reason}", file=sys.stderr)
        step.eager()
        return False
    finally:
        with torch.no_grad():
            for buffer, before in zip(step.method.buffers(), buffers, strict=True):
                buffer.copy_(before)
    what = "the step" if step.world.size == 1 else "the augmentation (with several processes the rest runs eager)"
    print(f"compiled {what} in {time.perf_counter() - started:.1f} s", file=sys.stderr)
    return True
