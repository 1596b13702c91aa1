"""The exchanges between the processes of a run in a step, and their cost."""

from collections.abc import Callable

import torch
import torch.distributed as dist

from vssl.collectives import dry_run
from vssl.engine.step import TrainStep
from vssl.profile.timing import Rate, Timer

__all__ = ["measure_exchange"]


def measure_exchange(
    step: TrainStep, backward: Callable[[], object], replay: Callable[[Callable[[], object]], Rate], timer: Timer
) -> dict:
    """Bytes that each process hands over in a step, the time of exchanging them, and that of one all-reduce.

    Args:
        backward: forward and backward pass of ``step`` on a cached batch and ready-made views.
        replay: times a function as the step would run it.
    """
    with dry_run() as exchanges:
        backward()
    weights = [w for module in (step.method, step.probe) if module for w in module.parameters() if w.requires_grad]
    size = 2 if step.config.train.exchange == "bf16" else 4
    flat = torch.zeros(sum(w.numel() for w in weights), device=weights[0].device)

    def all_reduce() -> int:
        dist.all_reduce(flat)
        return flat.nbytes

    def alone() -> None:
        with dry_run():
            backward()

    together, apart = replay(backward), replay(alone)
    reduced = timer.rate(all_reduce)
    return {
        "count": step.world.size,
        "gradient_bytes": size * flat.numel(),
        "statistics_bytes": sum(exchange.bytes for exchange in exchanges),
        "statistics_exchanges": len(exchanges),
        "network_milliseconds": together.milliseconds,
        "network_alone_milliseconds": apart.milliseconds,
        "all_reduce_milliseconds": reduced.milliseconds,
        "all_reduce_bytes": flat.nbytes,
    }
