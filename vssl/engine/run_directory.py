"""The run directory: who may write there, and what a run leaves behind."""

import fcntl
import json
from pathlib import Path

from pipelines.errors import UserError
from pipelines.files import write_atomically
from vssl.config import Config, to_yaml
from vssl.engine.checkpoint import Checkpoints, load_checkpoint

__all__ = ["RunDirectory"]


class RunDirectory:
    """Opens (and locks) a run's directory.

    Args:
        config: resolved.
        resume: None: a fresh run; ``auto``: the newest checkpoint here, or afresh; else a checkpoint's path.

    Attributes:
        path: the directory.
        state: the checkpoint to continue from, or None.

    Raises:
        UserError: the directory holds a run and ``resume`` is None; another process trains there; no such checkpoint.
    """

    def __init__(self, config: Config, resume: str | None) -> None:
        self.path = Path(config.run.dir)
        self.checkpoints = Checkpoints(self.path / "checkpoints", config.checkpoint.keep)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # The kernel lets go of the lock when its process dies, however it dies.
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 (held as long as the run)
        except OSError as error:
            raise UserError(f"cannot use run.dir={self.path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is training in run.dir={self.path}") from error
        holds_run = (self.path / "metrics.jsonl").exists() or bool(self.checkpoints.paths())
        if resume is None and holds_run:
            raise UserError(f"run.dir={self.path} already holds a run; continue it with --resume auto, or name another")
        for folder in (self.path, self.checkpoints.directory):
            for leftover in folder.glob(".*.tmp-[0-9]*"):  # of a process killed while it wrote
                leftover.unlink()
        self.state = None
        if resume == "auto":
            self.state = self.checkpoints.newest()
        elif resume is not None:
            self.state = load_checkpoint(Path(resume))

    def describe(self, config: Config, environment: dict) -> None:
        """Write ``config.yaml`` and ``environment.json``."""
        write_atomically(self.path / "config.yaml", lambda path: path.write_text(to_yaml(config)))
        text = json.dumps(environment, indent=2) + "\n"
        write_atomically(self.path / "environment.json", lambda path: path.write_text(text))

    def close(self) -> None:
        """Let another process train here."""
        self._lock.close()
