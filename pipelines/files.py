"""Files that are there whole or not at all."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.errors import UserError

__all__ = ["check_writable", "write_atomically", "write_json"]


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write(temporary)`` make a file beside ``path``, flush it to the disk, and rename it: whole or not at all.

    Raises:
        UserError: the file system refuses (disk full, no permission); what ``path`` held before is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a plain value as indented JSON; as ``write_atomically``."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n"))


def check_writable(path: Path) -> None:
    """Make sure that ``write_atomically`` could make ``path``, before long work whose result is to go there.

    Leaves nothing behind; folders that are missing are not made yet.

    Raises:
        UserError: it could not.
    """
    try:
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a directory")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
