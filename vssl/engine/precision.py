"""Device, automatic mixed precision, and algorithms that repeat their bits."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from pipelines.errors import UserError

__all__ = ["LossScale", "autocast", "repeat_bits", "resolve_amp", "resolve_device"]


def resolve_device(name: str) -> torch.device:
    """``auto`` means a GPU if there is one. Raises UserError for ``cuda`` without a GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: torch sees no CUDA device here; use cpu or auto")
    return torch.device(name)


def repeat_bits() -> None:
    """From now on, and until this process ends, use only GPU algorithms that give the same bits for the same input.

    Call it before the GPU is used. An operation that has no such algorithm raises RuntimeError.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
    torch.use_deterministic_algorithms(True)  # in cuDNN too
    torch.utils.deterministic.fill_uninitialized_memory = False  # a search for bugs, with many kernels
    torch._inductor.config.deterministic = True  # compiled code chooses none of its kernels by their time


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
        """Whether the scale fell below 1: then it is not the scale that makes values overflow. Needs a host sync."""
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
