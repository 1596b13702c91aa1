"""Settings of the evaluation during training."""

from dataclasses import dataclass

__all__ = ["EvalConfig"]


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation during training."""

    every: int = 1  # epochs between two kNN evaluations, beside those before and after training; 0: none at all
    k: int = 20  # neighbours
    temperature: float = 0.07  # of the neighbours' weights
    probe_lr: float = 0.1  # of the online linear probe, for a batch of 256; 0: no probe
