"""The run directory: one process may train there, and a run writes its files there."""

import fcntl
import sys
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.files import write_atomically, write_json
from vssl.config import to_yaml
from vssl.engine.checkpoint import Checkpoints, load_newest
from vssl.engine.config import Config

__all__ = ["RunDirectory"]


class RunDirectory:
    """Opens (and locks) a run's directory.

    Args:
        config: resolved.
        resume: None: a new run; ``auto``: the newest checkpoint here, or a new run if none; else the path
            of a checkpoint, or of a run directory (its newest checkpoint).

    Attributes:
        path: the directory.
        checkpoints: the checkpoints in it.

    Raises:
        UserError: ``run.dir`` is empty; the directory holds a run and ``resume`` is None; or another process trains
            there.
    """

    def __init__(self, config: Config, resume: str | None) -> None:
        if not config.run.dir:
            raise UserError("run.dir is empty: name a folder for the run")
        self.path, self._resume = Path(config.run.dir), resume
        self.checkpoints = Checkpoints(self.path / "checkpoints", config.checkpoint.keep)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # The kernel releases the lock however the process ends.
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 (open during the whole run)
        except OSError as error:
            raise UserError(f"cannot use run.dir={self.path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is training in run.dir={self.path}") from error
        except OSError as error:
            print(
                f"run.dir={self.path} is on a file system without locks ({error.strerror}): nothing keeps another "
                "process from training there too",
                file=sys.stderr,
            )
        holds_run = (self.path / "metrics.jsonl").exists() or bool(self.checkpoints.paths())
        if resume is None and holds_run:
            raise UserError(f"run.dir={self.path} already holds a run; continue it with --resume auto, or name another")
        for folder in (self.path, self.checkpoints.directory):
            for leftover in folder.glob(".*.tmp-[0-9]*"):  # left by a process killed while writing
                leftover.unlink()

    def load(self) -> dict[str, Any] | None:
        """The checkpoint to continue from, or None. It is not kept here, because it is as large as the training state.

        Raises:
            UserError: there is no such checkpoint, or all are damaged; or it is a file, and the directory holds later
                ones, which ``auto`` would take next time.
        """
        if self._resume == "auto":
            return self.checkpoints.newest()
        if self._resume is None:
            return None
        source, last = Path(self._resume), self.checkpoints.last_step()
        state = load_newest(source)
        if source.is_file() and state["step"] < last:
            raise UserError(
                f"run.dir={self.path} holds a later checkpoint (step {last}) than {source} (step {state['step']}): "
                "name another run.dir, or move the later ones away"
            )
        return state

    def describe(self, config: Config, environment: dict, step: int) -> None:
        """Write ``config.yaml`` and ``environment.json``; another config that the run had until ``step`` is kept as
        ``config-until-step-N.yaml``."""
        written, text = self.path / "config.yaml", to_yaml(config)
        kept = self.path / f"config-until-step-{step}.yaml"
        # If it exists, nothing that was trained with the present config.yaml is left.
        if written.exists() and written.read_text() != text and not kept.exists():
            written.rename(kept)
        write_atomically(written, lambda path: path.write_text(text))
        write_json(self.path / "environment.json", environment)

    def close(self) -> None:
        """Release the lock: another process can now train here."""
        self._lock.close()
