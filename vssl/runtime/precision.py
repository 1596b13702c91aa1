"""Automatic mixed precision, and the scale of fp16's loss."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from pipelines.errors import UserError

__all__ = ["LossScale", "autocast", "resolve_amp"]


def resolve_amp(name: str, device: torch.device) -> torch.dtype | None:
    """The dtype to autocast to, or None. ``auto``: bf16 on GPUs that have it, fp16 on others, off on CPUs (few have
    bf16 units, and without them bf16 is many times slower). Raises UserError for fp16 on a CPU."""
    if name == "auto":
        if device.type == "cpu":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if name == "fp16" and device.type == "cpu":
        raise UserError("train.amp=fp16 needs a GPU; use bf16 or off")
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[name]


def autocast(device: torch.device, dtype: torch.dtype | None) -> Callable[[], AbstractContextManager]:
    """A function that returns the autocast context; for None, one that does nothing."""
    # No cache: a captured graph would replay with the cached casts of old weights.
    return lambda: torch.autocast(device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False)


class LossScale:
    """Dynamic loss scaling for fp16 by the rule of torch.amp.GradScaler, but entirely on the device.

    Without fp16 the scale stays 1.
    """

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self.enabled = enabled
        self.scale = torch.full((), 2.0**16 if enabled else 1.0, device=device)
        self.growth_steps = torch.zeros((), dtype=torch.int32, device=device)

    @property
    def exhausted(self) -> bool:
        """Whether the scale fell below 1: then values overflow for another reason. Needs a host sync."""
        return self.enabled and self.scale.item() < 1.0

    def update(self, found_inf: Tensor) -> None:
        """Halve after an overflow, double after 2,000 steps without one."""
        if self.enabled:
            torch._amp_update_scale_(self.scale, self.growth_steps, found_inf, 2.0, 0.5, 2000)

    def state_dict(self) -> dict[str, Tensor]:
        """Empty without fp16: a run that continues with fp16, perhaps on another device, then starts with its own."""
        return {"scale": self.scale, "growth_steps": self.growth_steps} if self.enabled else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Without fp16 the scale stays 1, whatever was saved."""
        if self.enabled and state:
            self.scale.copy_(state["scale"])
            self.growth_steps.copy_(state["growth_steps"])
