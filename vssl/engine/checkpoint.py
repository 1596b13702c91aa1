"""Checkpoints: written completely or not at all, verified when read; and the export of the backbone."""

import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import UserError
from pipelines.files import write_atomically
from vssl.models.weights import read_tensors

__all__ = [
    "Checkpoints",
    "export_backbone",
    "is_checkpoint",
    "load_checkpoint",
    "load_newest",
]

_NAME = re.compile(r"step-(\d{9})\.pt")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's tensors and plain values, on the CPU, read by ``read_tensors``.

    Raises:
        UserError: no such file, or not a whole checkpoint of this program.
    """
    if not path.exists():
        raise UserError(f"no checkpoint at {path}")
    try:
        state = read_tensors(path)
    except UserError as error:
        raise UserError(f"{path} is not a whole checkpoint: {error}") from error
    if not is_checkpoint(state):
        raise UserError(f"{path} is not a checkpoint of this version of the program")
    return state


def is_checkpoint(content: Any) -> bool:
    """Whether a file's content (``read_tensors``) is a checkpoint of this program."""
    return isinstance(content, dict) and "step" in content and isinstance(content.get("method"), dict)


def load_newest(source: Path) -> dict[str, Any]:
    """The newest whole checkpoint of a run directory, or the checkpoint that ``source`` is.

    Raises:
        UserError: there is none.
    """
    state = Checkpoints(source / "checkpoints", keep=1).newest() if source.is_dir() else load_checkpoint(source)
    if state is None:
        raise UserError(f"{source} holds no whole checkpoint")
    return state


class Checkpoints:
    """The ``checkpoints/`` folder of a run: ``step-000001234.pt``, the newest ``keep`` of them."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory, self.keep = directory, keep

    def paths(self) -> list[Path]:
        """All checkpoints, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(path for path in self.directory.iterdir() if _NAME.fullmatch(path.name))

    def last_step(self) -> int:
        """The step of the newest checkpoint, whole or not; 0: there is none."""
        return max((int(path.stem.removeprefix("step-")) for path in self.paths()), default=0)

    def save(self, step: int, state: dict[str, Any]) -> Path:
        path = self.directory / f"step-{step:09d}.pt"
        write_atomically(path, lambda temporary: _save(state, temporary))
        for old in self.paths()[: -self.keep]:
            old.unlink()
        return path

    def newest(self) -> dict[str, Any] | None:
        """The newest whole checkpoint; damaged newer ones are skipped, each with a line on standard error. None if
        there are no checkpoints at all.

        Raises:
            UserError: there are checkpoints, but none is whole.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                return load_checkpoint(path)
            except UserError as error:
                print(f"passed over: {error}", file=sys.stderr)
        if paths:
            raise UserError(
                f"none of the {len(paths)} checkpoints in {self.directory} is whole: remove them to start afresh"
            )
        return None


def _save(state: dict[str, Any], path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:  # torch's writer raises this when a write fails
        raise OSError("only a part could be written; is the disk full?") from error


def export_backbone(weights: dict[str, Tensor], path: Path) -> None:
    """Write a backbone's state dict as safetensors with torchvision's keys, without ``fc``.

    The file holds only tensors (no date, path or host name): the same training gives the same bytes.
    """
    from safetensors.torch import save

    plain = {key: value.detach().cpu().contiguous().clone() for key, value in sorted(weights.items())}
    write_atomically(path, lambda temporary: temporary.write_bytes(save(plain)))
