"""The options that optimizers share, and the keys of a group of weights."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipelines.options import option

__all__ = [
    "Group",
    "OptimOptions",
    "ResolvedOptim",
    "add_scheduled_decay",
    "for_torch",
    "good",
    "shrink",
    "start_momentum",
    "trained",
]

# A parameter group as torch has it, with these keys besides torch's own:
#   params: the weights; kind: matrix, decayed or plain (``vssl.optim.groups``);
#   lr: float32, a scalar on the weights' device, into which the schedule writes; lr_scale: its factor of the schedule;
#   decay: weight decay, a float, or if it follows a schedule a float32 scalar on the device.
Group = dict[str, Any]


@dataclass(frozen=True)
class OptimOptions:
    """Optimizer, learning rate and weight decay; each optimizer has keys of its own."""

    # The meaning of null with a method whose recipe is for another optimizer.
    default_lr: ClassVar[float]
    default_weight_decay: ClassVar[float]

    name: str | None = option(None, "which optimizer; null: the one of the method's recipe")
    lr: float | None = option(
        None,
        "for a batch of 256: the rate used is lr * data.batch_size / 256; null: the method's recipe, or the "
        "optimizer's own default if the recipe is for another one",
        low=0.0,
        may_change=True,
    )
    final_lr: float = option(0.0, "final value of the cosine, for a batch of 256 as lr is", low=0.0)
    warmup_epochs: float | None = option(
        None, "linear warm-up from 0; null: 10 epochs, but at most a tenth of the run", low=0.0
    )
    weight_decay: float | None = option(
        None, "not applied to biases, norms, position embeddings and tokens; null: as for lr", low=0.0
    )
    final_weight_decay: float | None = option(
        None, "weight decay at the end, which a cosine leads to; null: it is constant", low=0.0
    )
    backbone_lr_scale: float = option(1.0, "factor of the backbone's learning rate", low=0.0)
    layer_decay: float = option(
        1.0,
        "factor of the backbone's learning rate from each layer to the one below it; the last has the backbone's",
        low=0.0,
        high=1.0,
    )


@dataclass(frozen=True)
class ResolvedOptim(OptimOptions):
    """The type of any optimizer's options in which no value is left to the recipe (``vssl.engine.config.resolve``)."""

    name: str = ""
    lr: float = 0.0
    weight_decay: float = 0.0


def for_torch(groups: Iterable[Group]) -> list[Group]:
    """Groups for an optimizer of torch: ``weight_decay`` is ``decay``, or 0 if that is a tensor, which fused kernels do
    not read."""
    return [
        {**group, "weight_decay": 0.0 if isinstance(group["decay"], Tensor) else group["decay"]} for group in groups
    ]


def trained(group: Group) -> list[Tensor]:
    """The group's weights that have a gradient; the others are not changed."""
    return [weight for weight in group["params"] if weight.grad is not None]


def start_momentum(optimizer: torch.optim.SGD) -> None:
    """Create the momentum buffers: if ``found_inf`` skips the first step, torch leaves its own uninitialised."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)


@torch.no_grad()
def shrink(optimizer: torch.optim.Optimizer, groups: Iterable[Group]) -> None:
    """w <- (1 - lr decay) w for the weights of ``groups`` that have a gradient, unless ``found_inf`` is 1: decoupled
    weight decay (Loshchilov and Hutter, arXiv 1711.05101)."""
    for group in groups:
        weights = trained(group)
        if weights and group["kind"] != "plain":
            torch._foreach_mul_(weights, 1.0 - group["lr"] * (group["decay"] * good(optimizer)))


@torch.no_grad()
def add_scheduled_decay(optimizer: torch.optim.Optimizer) -> None:
    """g <- g + decay w where ``decay`` is a tensor: the weight decay of SGD, before the optimizer's own step."""
    for group in optimizer.param_groups:
        weights = trained(group)
        if isinstance(group["decay"], Tensor) and weights:
            torch._foreach_add_([w.grad for w in weights], torch._foreach_mul(weights, group["decay"]))


def good(optimizer: torch.optim.Optimizer) -> Tensor | float:
    """1 - ``found_inf``, the flag that the step sets: 0 if nothing may change. 1 if the optimizer has no such flag."""
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    return 1.0 if found_inf is None else 1.0 - found_inf
