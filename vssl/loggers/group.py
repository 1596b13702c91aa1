"""All loggers of a run: two that every run has, and those of ``train.loggers``, which cannot end the run."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vssl.loggers import DEFAULT, find_logger
from vssl.loggers.base import Logger
from vssl.loggers.jsonl import JSONLines
from vssl.loggers.progress import Progress

__all__ = ["LoggerGroup"]


class LoggerGroup:
    """Passes everything on to ``metrics.jsonl``, to the progress shown, and to the loggers named.

    A named logger that raises an exception is reported once on standard error and dropped.

    Args:
        names: as in ``train.loggers``.
        run, config, steps, done: as in ``Logger.start``.

    Raises:
        UserError: a name leads to no logger, or ``metrics.jsonl`` cannot be written (also in ``log``).
    """

    def __init__(self, names: Sequence[str], run: Path, config: dict[str, Any], steps: int, done: int) -> None:
        self._named: dict[str, Logger] = {name: find_logger(name)() for name in names}
        self._lines, self._progress = JSONLines(), Progress()
        for logger in (self._lines, self._progress):
            logger.start(run, config, steps, done)
        self._silent = tuple(names) == DEFAULT
        self._each(lambda logger: logger.start(run, config, steps, done))
        self._silent = False

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._named.items()):
            try:
                call(logger)
            except Exception as error:
                del self._named[name]
                if not (self._silent and isinstance(error, ImportError)):
                    what = " ".join(f"{type(error).__name__}: {error}".split())
                    print(f"no further figures for the logger {name}: {what}", file=sys.stderr)
                with contextlib.suppress(Exception):
                    logger.close()

    def log(self, step: int, epoch: float, values: dict[str, Any]) -> None:
        """Figures measured at a step, as in ``Logger.log``."""
        self._lines.log(step, epoch, values)
        self._progress.log(step, epoch, values)
        self._each(lambda logger: logger.log(step, epoch, values))

    def text(self, step: int, line: str) -> None:
        """A line of text, already printed on standard error."""
        self._each(lambda logger: logger.text(step, line))

    def advance(self, step: int) -> None:
        """Show how far the run is."""
        self._progress.advance(step)

    def set_length(self, steps: int) -> None:
        """The whole run has another number of steps than planned so far."""
        self._progress.set_length(steps)

    def close(self) -> None:
        self._each(lambda logger: logger.close())
        self._progress.close()
        self._lines.close()
