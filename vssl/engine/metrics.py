"""Metrics that stay on the device until a log line is due; then metrics.jsonl, TensorBoard and a progress bar."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.errors import UserError

__all__ = ["MeanAccumulator", "MetricsWriter"]


# On the bar and in the plain lines: key, its name there, and how its value is written.
_SHOWN = {
    "loss": ("loss", ".3f"),
    "feature_std": ("feature_std", ".3f"),
    "knn_top1": ("kNN top-1", ".3f"),
    "online_top1": ("online top-1", ".3f"),
    "images_per_second": ("images/s", ",.0f"),
}


class MeanAccumulator:
    """Running means of named scalars, on their device. Adding needs no host sync, reading needs one.

    ``add`` works in place, so that it can be part of a captured step.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._total: Tensor | None = None  # sums, then the count

    def add(self, values: dict[str, Tensor]) -> None:
        """Add scalars; the names must be the same every time."""
        scalars = [value.detach().float() for value in values.values()]
        row = torch.stack([*scalars, torch.ones_like(scalars[0])])
        if self._total is None:
            self._names, self._total = list(values), torch.zeros_like(row)
        self._total += row

    def read(self) -> dict[str, float]:
        """The means since the last reading. One device-to-host copy."""
        assert self._total is not None, "nothing has been added"
        *sums, count = self._total.tolist()
        self._total.zero_()
        return {name: value / count for name, value in zip(self._names, sums, strict=True)}


def _cut_torn_line(path: Path) -> None:
    """Remove an incomplete last line, left by a killed process or a full disk."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


class MetricsWriter:
    """One JSON object per line in ``metrics.jsonl``; TensorBoard events if installed; a progress bar on a terminal,
    elsewhere a plain line on standard output for each line with figures.

    Args:
        directory: the run directory.
        steps, done: number of steps of the whole run, and of those already taken.
    """

    def __init__(self, directory: Path, steps: int, done: int) -> None:
        path = directory / "metrics.jsonl"
        _cut_torn_line(path)
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 (closed in close)
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(directory), purge_step=done)
        except ImportError:
            self._tensorboard = None
        interactive = sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=done, unit="step", disable=not interactive, dynamic_ncols=True)
        self._interactive, self._steps, self._done = interactive, steps, done
        self._shown: dict[str, str] = {}
        self._started = time.perf_counter()

    def write(self, step: int, epoch: float, **values: Any) -> None:
        """Write what was measured at ``step``: numbers, and plain values that only ``metrics.jsonl`` takes."""
        line = {"step": step, "epoch": round(epoch, 4), **values}
        try:
            self._file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self._file.name}: {error.strerror}") from error
        if self._tensorboard is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._tensorboard.add_scalar(name, value, step)
        self._shown |= {name: format(values[name], spec) for name, (_, spec) in _SHOWN.items() if name in values}
        self._bar.set_postfix(self._shown, refresh=False)
        if not self._interactive and (shown := self._describe(step, values)):
            print(f"step {step} of {self._steps}, epoch {epoch:.2f}: {', '.join(shown)}", flush=True)

    def _describe(self, step: int, values: dict[str, Any]) -> list[str]:
        """Figures for a plain line; none for a line without figures."""
        shown = [f"{label} {values[name]:{spec}}" for name, (label, spec) in _SHOWN.items() if name in values]
        if "loss" in values and step > self._done:
            seconds = (time.perf_counter() - self._started) / (step - self._done) * (self._steps - step)
            shown.append(f"remaining {tqdm.format_interval(seconds)}")
        return shown

    def advance(self, step: int) -> None:
        """Move the bar; it redraws itself a few times per second."""
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk, which write has reported
            self._file.close()
        self._bar.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
