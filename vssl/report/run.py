"""A run as the page describes it: its records and its measurements."""

import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError
from pipelines.formats.packed import open_packed
from vssl.inference import Pretrained, load
from vssl.loggers.jsonl import read_metrics
from vssl.report.measure import Measurement, measure

__all__ = ["Run", "read_run"]


@dataclass(frozen=True)
class Run:
    """``metrics``: the lines of ``metrics.jsonl``; ``environment``: the content of ``environment.json``."""

    path: Path
    metrics: list[dict]
    environment: dict
    model: Pretrained
    measured: Measurement


def read_run(path: Path, data: Path | None = None, device: str = "auto") -> Run:
    """Read a run directory, then measure its newest checkpoint.

    Args:
        data: the packed data set; None: the run's own ``data.dir``.
        device: auto, cpu or cuda.

    Raises:
        UserError: not a run directory, a file of it is absent or damaged, or its data set has moved.
    """
    if not path.is_dir():
        raise UserError(f"{path}: not a run directory, which train.py writes to run.dir")
    metrics, environment = read_metrics(path), _read_environment(path / "environment.json")
    model = load(path, device=device)
    own = Path(model.config.data.dir)
    if data is None and not own.is_dir():
        raise UserError(f"{path}: its data set is not in {own} any more: give --data PACKED_DIR")
    return Run(path, metrics, environment, model, measure(model, open_packed(data or own)))


def _read_environment(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a JSON object")
    return content
