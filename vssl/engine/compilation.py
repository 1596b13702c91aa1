"""Compile the step; if that fails, run it eager and report the reason."""

import sys
import time

import torch

from pipelines.batch import Batch
from vssl.engine.step import TrainStep

__all__ = ["compile_step"]


def compile_step(step: TrainStep, batch: Batch) -> bool:
    """Compile forward and backward of ``step`` for batches like ``batch``, without training on ``batch``.

    If the compiler fails (no C++ compiler, an unsupported operation), the step stays eager, and one line on standard
    error gives the reason. All processes decide alike: each compiles in a dry run without waiting for the others. If
    one of them fails, or their exchanges differ, all stay eager.

    Returns:
        Whether the step is compiled now.
    """
    started = time.perf_counter()
    failure, exchanges = "", []
    changed = [buffer for part in (step.method, step.probe) if part is not None for buffer in part.buffers()]
    buffers = [buffer.clone() for buffer in changed]
    step.compile()
    try:
        exchanges = step.dry_run(batch)
    except Exception as error:  # the compiler's errors have no common ancestor
        reason = str(error).strip().split("\n")[0]
        failure = f"{type(error).__name__}: {reason}"
    with torch.no_grad():
        for buffer, before in zip(changed, buffers, strict=True):
            buffer.copy_(before)
    failures, orders = zip(*step.world.collect((failure, exchanges)), strict=True)
    if any(order != exchanges for order in orders):
        failure = "the processes would exchange statistics in different orders"
    failure = next(filter(None, failures), failure)
    if failure:
        print(f"torch.compile failed, the step runs eager: {failure}", file=sys.stderr)
        step.eager()
        return False
    print(f"compiled the step in {time.perf_counter() - started:.1f} s", file=sys.stderr)
    return True
