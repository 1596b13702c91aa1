"""Files that are written completely or not at all."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.errors import UserError

__all__ = ["check_writable", "write_atomically", "write_json"]


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write(temporary)`` make a file beside ``path``, sync it to disk, and only then rename it to ``path``.

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
        with contextlib.suppress(OSError):  # it does not exist, or the file system refuses this too
            temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write a plain value as indented JSON; as ``write_atomically``."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n"))


def check_writable(path: Path) -> None:
    """Check that ``write_atomically`` can make ``path``, before long work whose result will go there.

    Leaves nothing behind; missing folders are not made yet.

    Raises:
        UserError: it cannot.
    """
    try:
        if path.exists() and not path.is_file():  # renaming would replace a pipe or a device such as /dev/null
            raise UserError(f"cannot write {path}: it is {'a directory' if path.is_dir() else 'not a regular file'}")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
