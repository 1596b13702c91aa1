"""Optimizers that run entirely on the device, one file each: its options with defaults of its own, and its update."""

from typing import Any

import torch
from torch import Tensor, nn

from pipelines.errors import UserError
from pipelines.parts import find_part
from vssl.optim.base import OptimOptions
from vssl.optim.groups import parameter_groups
from vssl.optim.lars import LARS
from vssl.optim.schedule import Schedule

__all__ = [
    "LARS",
    "OPTIMIZERS",
    "Schedule",
    "build_optimizer",
    "find_optimizer",
    "load_optimizer",
    "set_learning_rate",
    "set_weight_decay",
]

# optim.name, which is also the name of the module, and the class in it.
OPTIMIZERS = {
    "lars": "LARS",
    "sgd": "SGD",
    "adamw": "AdamW",
    "muon": "Muon",
}


def find_optimizer(name: str) -> type[Any]:
    """The class of one of ``OPTIMIZERS``, or ``package.module:Class``, one of the same interface.

    It is a ``torch.optim.Optimizer`` with ``Options``, a subclass of ``OptimOptions`` with both defaults, and is built
    from groups (``vssl.optim.base.Group``) and such options. Its ``step`` reads each group's ``lr`` and ``decay`` on
    the device, skips weights without a gradient, and changes nothing if the attribute ``found_inf`` (float32, a scalar
    on the device) is 1. With ``splits_matrices = True`` it gets matrices in groups of their own.

    Raises:
        UserError: there is no such class, or it has no such ``Options``.
    """
    table = {key: f"vssl.optim.{key}:{member}" for key, member in OPTIMIZERS.items()}
    found = find_part("optim.name", name, table, torch.optim.Optimizer)
    options = getattr(found, "Options", object)
    if not (issubclass(options, OptimOptions) and hasattr(options, "default_lr")):
        raise UserError(f"optim.name={name} has no Options of the kind of vssl.optim.base.OptimOptions")
    return found


def build_optimizer(
    module: nn.Module, options: OptimOptions, backbone: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The optimizer of a module's weights. Its rates are 0 until ``set_learning_rate`` writes them.

    Args:
        options: resolved.
        backbone: the part of ``module`` whose rates ``backbone_lr_scale`` and ``layer_decay`` scale.

    Raises:
        UserError: as ``find_optimizer`` and ``parameter_groups``.
    """
    found: Any = find_optimizer(str(options.name))
    groups = parameter_groups(module, options, backbone, split_matrices=getattr(found, "splits_matrices", False))
    device = next(module.parameters()).device
    rates = {group["lr_scale"]: torch.zeros((), device=device) for group in groups}
    decay: Any = options.weight_decay
    if options.final_weight_decay is not None:
        decay = torch.full((), decay, device=device)
    for group in groups:
        group |= {"lr": rates[group["lr_scale"]], "decay": 0.0 if group["kind"] == "plain" else decay}
    return found(groups, options)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load a state saved on any device. The optimizer keeps everything that the config sets, and its own tensors: torch
    would replace the learning rate by the checkpoint's tensor on the host, which a captured step does not read.

    Raises:
        UserError: the state belongs to other groups of weights.
    """
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:  # versions differ in the weights that decay
        raise UserError(
            "the checkpoint's optimizer has other groups of weights than this version of the program: start a new run "
            "with model.weights=CHECKPOINT"
        ) from error
    for group, values in zip(optimizer.param_groups, own, strict=True):
        weights = group["params"]
        group.clear()
        group |= {"params": weights, **values}


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Write the learning rate, times each group's factor, into the optimizer's own tensors, which a compiled or
    captured step reads. Groups with the same factor share a tensor."""
    for scale, rate in {group["lr_scale"]: group["lr"] for group in optimizer.param_groups}.items():
        rate.fill_(lr * scale)


def set_weight_decay(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Write the weight decay into the optimizer's own tensor, if it follows a schedule. All groups share the tensor."""
    scheduled = [group["decay"] for group in optimizer.param_groups if isinstance(group["decay"], Tensor)]
    for tensor in scheduled[:1]:
        tensor.fill_(decay)
