"""A folder that is written completely or not at all."""

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.errors import UserError

__all__ = ["staged"]


@contextlib.contextmanager
def staged(out: Path, may_replace: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield an empty folder beside ``out``. If the block ends without an error, it is synced and becomes ``out``.

    Leftovers of a killed process beside ``out`` are removed; if they are the former ``out``, they are put back.

    Args:
        out: may be absent or an empty folder.
        may_replace: called with ``out`` if anything else is there; refuses by returning False or raising an error.

    Raises:
        UserError: ``out`` may not be replaced, or another process is writing it.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    former = out.with_name(f".{out.name}.former")
    partial.mkdir(exist_ok=True)
    with _locked(partial):
        try:
            if former.exists():
                # A process was killed between the two renames below.
                shutil.rmtree(former) if _occupied(out) else former.rename(out)
            occupied = _occupied(out)
            if occupied and not may_replace(out):
                raise UserError(f"{out}: is neither empty nor only a packed data set; name another --out")
            for leftover in partial.iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            yield partial
            for path in (*partial.iterdir(), partial):
                _sync(path)
            if occupied:
                out.rename(former)
            partial.rename(out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            if former.exists() and not _occupied(out):  # stopped between the two renames
                former.rename(out)
            raise
        _sync(out.parent)
        shutil.rmtree(former, ignore_errors=True)


def _occupied(place: Path) -> bool:
    """Whether anything but an empty folder is there."""
    return place.exists() and not (place.is_dir() and not any(place.iterdir()))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the only lock on a folder; it is released when the process ends, for whatever reason."""
    busy = UserError(f"{folder}: another conversion is writing here; wait for it or name another --out")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError as error:  # as on some network file systems: convert there without this protection
            print(
                f"{folder} is on a file system without locks ({error.strerror}): nothing keeps another conversion from "
                "writing here",
                file=sys.stderr,
            )
        if not folder.exists() or not os.path.samestat(folder.stat(), os.fstat(descriptor)):
            raise busy  # the other conversion has just finished and renamed the folder
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
