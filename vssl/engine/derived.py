"""Values computed from the config and the data, for ``environment.json``."""

from typing import Any

from vssl.engine.config import Resolved
from vssl.models.ema import scale_tau
from vssl.optim import Schedule

__all__ = ["derived_values"]


def derived_values(config: Resolved, schedule: Schedule, steps_per_epoch: int, processes: int) -> dict[str, Any]:
    """Rates and lengths that a run uses, each beside the rule that gives it."""
    batch, optim = config.data.batch_size, config.optim
    warmup, final_decay, tau = optim.warmup_epochs, optim.final_weight_decay, getattr(config.method, "tau", None)
    teacher: dict[str, Any] = {}
    if tau is not None:
        teacher = {"tau": scale_tau(tau, batch), "tau_rule": f"method.tau {tau:g} ** max(1, {batch} / 256)"}
    return teacher | {
        "learning_rate": schedule.lr,
        "learning_rate_rule": f"optim.lr {optim.lr:g} x data.batch_size {batch} / 256",
        "final_learning_rate": schedule.final_lr,
        "weight_decay_rule": "constant"
        if final_decay is None
        else f"cosine from {optim.weight_decay:g} to {final_decay:g}",
        "images_per_process": batch // processes,
        "steps_per_epoch": steps_per_epoch,
        "warmup_steps": schedule.warmup_steps,
        "warmup_rule": "10 epochs, at most a tenth of the run" if warmup is None else f"optim.warmup_epochs {warmup:g}",
    }
