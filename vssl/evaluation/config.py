"""Options of the evaluation during training."""

from dataclasses import dataclass

from pipelines.options import option

__all__ = ["EvalConfig"]


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation during training."""

    every: int = option(
        1, "epochs between two evaluations; also at the start and at the end; 0: none", low=0, may_change=True
    )
    k: int = option(20, "number of neighbours in kNN", low=1, may_change=True)
    temperature: float = option(0.07, "kNN: temperature of the neighbours' weights", low=1e-3, may_change=True)
    probe_lr: float = option(0.1, "learning rate of the online linear probe, for a batch of 256; 0: no probe", low=0.0)
