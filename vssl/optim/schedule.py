"""Schedules: learning rate and weight decay of every step."""

import math
from dataclasses import dataclass
from typing import Self

from pipelines.errors import UserError
from vssl.optim.base import ResolvedOptim

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """Learning rate: linear warm-up, then a cosine (Loshchilov and Hutter, arXiv 1608.03983, without restarts). Weight
    decay: constant, or a cosine over the whole run, as in DINO's recipe (arXiv 2104.14294).

    Args:
        lr: peak learning rate (already scaled by the batch).
        steps: of the whole run.
        warmup_steps: of linear warm-up; the caller keeps it below ``steps``.
        final_lr: final value of the cosine (already scaled by the batch).
        weight_decay: at the start.
        final_weight_decay: at the end; None: it is constant.
    """

    lr: float
    steps: int
    warmup_steps: int
    final_lr: float = 0.0
    weight_decay: float = 0.0
    final_weight_decay: float | None = None

    @classmethod
    def of(cls, options: ResolvedOptim, *, batch_size: int, steps: int, steps_per_epoch: int) -> Self:
        """The schedule of a run: rates are multiplied by ``batch_size`` / 256, and a null ``warmup_epochs`` means 10
        epochs, but at most a tenth of the run.

        Raises:
            UserError: ``warmup_epochs`` is not shorter than the run.
        """
        warmup, scale, epochs = options.warmup_epochs, batch_size / 256, steps / steps_per_epoch
        if warmup is not None and warmup >= epochs:
            raise UserError(
                f"optim.warmup_epochs={warmup:g} is not shorter than the run of {epochs:g} epochs: make it "
                "smaller, or null for 10 epochs but at most a tenth of the run"
            )
        warmup_steps = min(10.0 * steps_per_epoch, 0.1 * steps) if warmup is None else warmup * steps_per_epoch
        return cls(
            options.lr * scale,
            steps,
            round(warmup_steps),
            options.final_lr * scale,
            options.weight_decay,
            options.final_weight_decay,
        )

    def learning_rate(self, step: int) -> float:
        """The learning rate at a step, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return _cosine(self.lr, self.final_lr, progress)

    def decay(self, step: int) -> float:
        """The weight decay at a step, counted from 0."""
        if self.final_weight_decay is None:
            return self.weight_decay
        return _cosine(self.weight_decay, self.final_weight_decay, step / self.steps)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))
