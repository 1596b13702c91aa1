"""The progress of a run: a bar on a terminal, elsewhere plain lines on standard output."""

import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vssl.loggers.base import Logger

__all__ = ["Progress"]

# On the bar and in the plain lines: key, its name there, and how its value is written.
_SHOWN = {
    "loss": ("loss", ".3f"),
    "feature_std": ("feature_std", ".3f"),
    "knn_top1": ("kNN top-1", ".3f"),
    "online_top1": ("online top-1", ".3f"),
    "images_per_second": ("images/s", ",.0f"),
}


class Progress(Logger):
    """A progress bar on a terminal, elsewhere a line for each measurement with figures."""

    def start(self, run: Path, config: dict[str, Any], steps: int, done: int) -> None:
        self._interactive, self._steps, self._done = sys.stderr.isatty(), steps, done
        self._bar = tqdm(total=steps, initial=done, unit="step", disable=not self._interactive, dynamic_ncols=True)
        self._shown: dict[str, str] = {}
        self._started = time.perf_counter()

    def log(self, step: int, epoch: float, values: dict[str, Any]) -> None:
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

    def set_length(self, steps: int) -> None:
        """The whole run has another number of steps."""
        self._steps = self._bar.total = steps

    def close(self) -> None:
        self._bar.close()
