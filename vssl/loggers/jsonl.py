"""``metrics.jsonl``: one JSON object per line."""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from vssl.loggers.base import Logger

__all__ = ["JSONLines", "read_metrics"]


class JSONLines(Logger):
    """Writes ``metrics.jsonl``. NaN and infinities, which JSON lacks, become null.

    Raises:
        UserError: the file cannot be written. Unlike other loggers this one then ends the run.
    """

    def start(self, run: Path, config: dict[str, Any], steps: int, done: int) -> None:
        path = run / "metrics.jsonl"
        _cut_torn_line(path)
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 (closed in close)

    def log(self, step: int, epoch: float, values: dict[str, Any]) -> None:
        line: dict[str, Any] = {"step": step, "epoch": round(epoch, 4)}
        line |= {name: value if _is_finite(value) else None for name, value in values.items()}
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self._file.name}: {error.strerror}") from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk, reported by log
            self._file.close()


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _cut_torn_line(path: Path) -> None:
    """Remove an incomplete last line, left by a killed process or a full disk."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


def read_metrics(run: Path) -> list[dict]:
    """The lines of a run's ``metrics.jsonl``: ``step``, ``epoch`` and the finite values measured then.

    Raises:
        UserError: the file is absent or damaged.
    """
    path = run / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not (isinstance(line, dict) and {"step", "epoch"} <= line.keys()):
            raise UserError(f"{path}: line {number} is not a measurement: it has no step and epoch")
    # Earlier versions wrote NaN and Infinity, which Python reads although they are not JSON.
    return [{k: value for k, value in line.items() if value is not None and _is_finite(value)} for line in lines]
