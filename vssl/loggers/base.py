"""The interface between a run and its loggers."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

__all__ = ["Logger"]


class Logger(ABC):
    """Receives the figures of a run, on its first process only.

    A library that only this logger needs is imported in ``start``. An exception ends the logger, not the run.
    """

    @abstractmethod
    def start(self, run: Path, config: dict[str, Any], steps: int, done: int) -> None:
        """Called once, before training.

        Args:
            run: the run directory.
            config: the resolved config, as nested plain values.
            steps, done: number of steps of the whole run, and of those already taken (0: a new run). Figures of later
                steps that an interrupted run has logged are measured again.
        """

    @abstractmethod
    def log(self, step: int, epoch: float, values: dict[str, Any]) -> None:
        """Figures measured at a step: numbers, which may be NaN or infinite, and a few other plain values."""

    def text(self, step: int, line: str) -> None:
        """A line of text, such as an alarm, already printed on standard error."""
        return

    def close(self) -> None:
        """Called once, at the end, also after an error."""
        return
