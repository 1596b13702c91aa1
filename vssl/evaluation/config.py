"""Options of the evaluation during training."""

from dataclasses import dataclass

from pipelines.options import option

__all__ = ["EvalConfig"]


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation during training."""

    every: int = option(1, "epochs between two kNN evaluations, beside those at the start and the end; 0: none", low=0)
    k: int = option(20, "neighbours", low=1)
    temperature: float = option(0.07, "of the neighbours' weights", low=1e-3)
    probe_lr: float = option(0.1, "of the online linear probe, for a batch of 256; 0: no probe", low=0.0)
