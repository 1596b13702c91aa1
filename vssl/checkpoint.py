"""Saving that never loses what is complete, and exact resume."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.errors import UserError

__all__ = [
    "CheckpointConfig",
    "Checkpoints",
    "backbone_weights",
    "export_backbone",
    "load_checkpoint",
    "write_atomically",
]

_NAME = re.compile(r"step-(\d{9})\.pt")


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save."""

    every_steps: int = 0  # 0: at the end of each epoch
    keep: int = 2  # newest checkpoints kept


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write(temporary)`` make a file beside ``path``, flush it to the disk, and rename it: whole or not at all.

    Raises:
        UserError: the file system refuses (disk full, no permission); what ``path`` held before is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's tensors and plain values, on the CPU; nothing in the file is executed.

    Raises:
        UserError: no such file, or not a whole checkpoint of this program.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint at {path}") from error
    except Exception as error:  # torch.load raises many kinds for a torn or foreign file
        raise UserError(f"{path} is not a whole checkpoint: {type(error).__name__}") from error
    if not isinstance(state, dict) or "step" not in state or "student" not in state:
        raise UserError(f"{path} is not a checkpoint of this program")
    return state


class Checkpoints:
    """The ``checkpoints/`` folder of a run: ``step-000001234.pt``, the newest ``keep`` of them."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory, self.keep = directory, keep

    def paths(self) -> list[Path]:
        """Oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(path for path in self.directory.iterdir() if _NAME.fullmatch(path.name))

    def save(self, step: int, state: dict[str, Any]) -> Path:
        path = self.directory / f"step-{step:09d}.pt"
        write_atomically(path, lambda temporary: torch.save(state, temporary))
        for old in self.paths()[: -self.keep]:
            old.unlink()
        return path

    def newest(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, or None; a torn newer one is passed over."""
        for path in reversed(self.paths()):
            try:
                return load_checkpoint(path)
            except UserError:
                continue
        return None


def export_backbone(weights: dict[str, Tensor], path: Path) -> None:
    """Write a backbone's state dict as safetensors with torchvision's keys, without ``fc``.

    Nothing but tensors goes in (no date, path or host): the same training gives the same bytes.
    """
    from safetensors.torch import save_file

    plain = {key: value.detach().cpu().contiguous().clone() for key, value in sorted(weights.items())}
    write_atomically(path, lambda temporary: save_file(plain, temporary))


def backbone_weights(student: nn.Module | dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's part of a student's state dict, with torchvision's keys."""
    state = student.state_dict() if isinstance(student, nn.Module) else student
    prefix = "encoder.backbone."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
