"""Optimizers that run entirely on the device, parameter groups, and the schedule of the learning rate."""

import fnmatch
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipelines.errors import UserError
from pipelines.options import option

__all__ = ["LARS", "OptimConfig", "Schedule", "build_optimizer", "load_optimizer", "set_learning_rate"]

_NORMS = (nn.LayerNorm, nn.RMSNorm)  # their weights may have several dimensions; those of the others have one


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning rate."""

    name: Literal["lars", "sgd", "adamw"] | None = option(None, "optimizer; null: the method's recipe")
    lr: float | None = option(
        None,
        "for a batch of 256: the rate used is lr * data.batch_size / 256; null: the method's recipe",
        low=0.0,
        may_change=True,
    )
    weight_decay: float | None = option(
        None, "not applied to biases, norms, position embeddings and tokens; null: the method's recipe", low=0.0
    )
    momentum: float = option(0.9, "momentum of lars and sgd", low=0.0, high=1.0)
    eta: float = option(0.02, "lars: trust coefficient", low=0.0)
    warmup_epochs: float = option(10.0, "linear warm-up from 0; at most a tenth of the run", low=0.0)


class LARS(torch.optim.SGD):
    """Layer-wise adaptive rate scaling with momentum.

    You, Gitman and Ginsburg, Large Batch Training of Convolutional Networks, arXiv 1708.03888. As in BYOL's
    recipes, the local rate is clipped (LARC), and biases and norms are excluded from adaptation and decay.
    For an adapted weight  g <- min(eta |w| / (|g| + wd |w|) / lr, 1) * (g + wd w), in place; then torch's fused SGD
    with momentum, which changes neither weights nor momentum if the attribute ``found_inf`` is 1.

    Args:
        groups: parameter groups; a group's ``adapt`` (default True) says whether its weights are adapted and decayed.
        lr: learning rate, a float32 scalar tensor on the weights' device; the host never reads it.
        momentum, weight_decay, eta: as above.
    """

    def __init__(self, groups: list[dict], lr: Tensor, momentum: float, weight_decay: float, eta: float) -> None:
        super().__init__([{"adapt": True} | group for group in groups], lr, momentum, fused=True)
        self.decay, self.eta = weight_decay, eta
        _start_momentum(self)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if group["adapt"] and weights:
                self._adapt(weights, group["lr"])
        super().step()

    def _adapt(self, weights: list[Tensor], lr: Tensor) -> None:
        grads = [w.grad for w in weights]
        weight_norms, grad_norms = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, grads))
        local = self.eta * weight_norms / (grad_norms + self.decay * weight_norms + 1e-8)
        # The rate is not adapted if the weight or its gradient is zero.
        adapted = (weight_norms > 0) & (grad_norms > 0)
        trust = torch.where(adapted, (local / lr).clamp(max=1.0), 1.0)
        torch._foreach_add_(grads, weights, alpha=self.decay)
        torch._foreach_mul_(grads, list(trust.unbind()))


def _start_momentum(optimizer: torch.optim.SGD) -> None:
    """Create the momentum buffers: if ``found_inf`` skips the first step, torch leaves its own uninitialised."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)


def _weights(module: nn.Module) -> Iterator[tuple[Tensor, bool]]:
    """Every weight that is trained, and whether it decays: matrices and kernels do, unless the network itself excludes
    them (``no_weight_decay()``, timm's convention). What is not called a weight is an embedding, a token or a scale.
    """
    parts = dict(module.named_modules())
    excluded = [
        f"{path}.{name}".removeprefix(".")
        for path, part in parts.items()
        if hasattr(part, "no_weight_decay")
        for name in part.no_weight_decay()
    ]
    for name, weight in module.named_parameters():
        if weight.requires_grad:
            is_norm = isinstance(parts[name.rpartition(".")[0]], _NORMS)
            listed = any(fnmatch.fnmatchcase(name, pattern) for pattern in excluded)
            yield weight, weight.ndim > 1 and "weight" in name and not is_norm and not listed


def build_optimizer(
    modules: list[nn.Module], name: str, lr: Tensor, weight_decay: float, momentum: float, eta: float
) -> torch.optim.Optimizer:
    """A fused optimizer over the modules' weights, in two groups: those with weight decay (and adaptation, under
    LARS), and those without it: biases, norms, scales, position embeddings, class tokens.

    ``lr`` is a float32 scalar tensor on the weights' device, shared by all groups: a schedule writes into it.
    """
    groups: list[dict[str, Any]] = [{"params": []}, {"params": []}]
    for module in modules:
        for weight, decays in _weights(module):
            groups[0 if decays else 1]["params"].append(weight)
    if name == "lars":
        groups[1]["adapt"] = False
        return LARS(groups, lr, momentum, weight_decay, eta)
    groups[1]["weight_decay"] = 0.0
    if name == "sgd":
        sgd = torch.optim.SGD(groups, lr, momentum=momentum, weight_decay=weight_decay, fused=True)
        _start_momentum(sgd)
        return sgd
    # capturable exists only on accelerators; there fused keeps the step count on the device.
    return torch.optim.AdamW(groups, lr, weight_decay=weight_decay, fused=True, capturable=lr.is_cuda)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load a state saved on any device. The learning rate stays the optimizer's own tensor on the device: torch would
    replace it by the checkpoint's tensor on the host, which a captured step does not read.

    Raises:
        UserError: the state belongs to other groups of weights.
    """
    kept = [{key: group[key] for key in ("lr", "capturable") if key in group} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:  # versions differ in the weights that decay
        raise UserError(
            "the checkpoint's optimizer has other groups of weights than this version of the program: start a new run "
            "with model.weights=CHECKPOINT"
        ) from error
    for group, own in zip(optimizer.param_groups, kept, strict=True):
        group.update(own)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Write the learning rate into the optimizer's own tensors, which a compiled or captured step reads."""
    for group in optimizer.param_groups:
        group["lr"].fill_(lr)


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step: linear warm-up, then a cosine to 0 (Loshchilov and Hutter, arXiv 1608.03983,
    without restarts).

    Args:
        lr: peak learning rate (already scaled by the batch).
        steps: of the whole run.
        warmup_steps: of linear warm-up; the caller keeps it below ``steps``.
    """

    lr: float
    steps: int
    warmup_steps: int

    def learning_rate(self, step: int) -> float:
        """The learning rate at a step, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
