"""Objectives: tensors in, a loss and detached scalars out. They know no model, engine or pipeline.

An objective is a module with ``needs_noise`` and ``forward(student, teacher, noise) -> {"loss": scalar, ...}``, where
student and teacher are (mean, log-variance) of [2B, D], the first B rows view 1, and noise is [2B, D] or None.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from vssl.methods.byol import BYOL
from vssl.methods.moco_v3 import MoCoV3
from vssl.methods.vssl import VSSL

__all__ = ["BYOL", "COMPARED", "VSSL", "MoCoV3", "ObjectiveConfig", "build_objective"]

COMPARED = ("vssl", "byol", "moco_v3")  # whom VSSL's claim is about


@dataclass(frozen=True)
class ObjectiveConfig:
    """Which method, and its constants."""

    name: Literal["vssl", "byol", "moco_v3"] = "vssl"
    form: Literal["cosine", "gaussian"] = "cosine"  # vssl
    likelihood: Literal["prior", "predictive"] = "predictive"  # vssl
    beta: float = 1.0  # vssl: weight of the KL
    kappa: float = 4.0  # vssl, cosine form: concentration
    decoupled: bool = True  # vssl, Gaussian form, predictive: variances do not weight the means' learning
    temperature: float = 0.2  # moco_v3


def build_objective(
    config: ObjectiveConfig, logvar_bound: float, *, rank: int = 0, gather: Callable[[Tensor], Tensor] | None = None
) -> nn.Module:
    """The objective that a config names; ``logvar_bound`` is the model's; ``rank`` and ``gather`` as in ``MoCoV3``."""
    if config.name == "byol":
        return BYOL()
    if config.name == "moco_v3":
        return MoCoV3(config.temperature, rank, gather)
    return VSSL(config.form, config.likelihood, config.beta, config.kappa, config.decoupled, logvar_bound)
