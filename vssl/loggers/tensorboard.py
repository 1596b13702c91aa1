"""Event files for TensorBoard, in the run directory."""

import threading
from pathlib import Path
from typing import Any

from vssl.loggers.base import Logger

__all__ = ["TensorBoard"]


class TensorBoard(Logger):
    """Writes scalars and text; everything in metrics.jsonl that is a number."""

    def start(self, run: Path, config: dict[str, Any], steps: int, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # A purge hides the events of this step and of later ones; those of step ``done`` will not be measured again.
        self._writer = SummaryWriter(str(run), purge_step=done + 1 if done else 0)
        self._print_error = threading.excepthook
        threading.excepthook = self._of_other_threads

    def _of_other_threads(self, failure: threading.ExceptHookArgs) -> None:
        """Print the exception that ended a thread. TensorBoard's own threads are left out: the next call here raises
        their error."""
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self._print_error(failure)

    def log(self, step: int, epoch: float, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def text(self, step: int, line: str) -> None:
        self._writer.add_text("messages", line, step)

    def close(self) -> None:
        try:
            self._writer.close()
        finally:
            threading.excepthook = self._print_error
