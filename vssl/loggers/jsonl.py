"""``metrics.jsonl``: one JSON object per line."""

import json
from pathlib import Path

from pipelines.errors import UserError

__all__ = ["read_metrics"]


def read_metrics(run: Path) -> list[dict]:
    """The lines of a run's ``metrics.jsonl``: ``step``, ``epoch`` and what was measured then.

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
    return lines
