"""A folder that is there whole or not at all."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.errors import UserError

__all__ = ["staged"]


@contextlib.contextmanager
def staged(out: Path, may_replace: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield an empty folder beside ``out`` that takes its place, synced to disk, if the block ends without an error.

    What a killed process left beside ``out`` is removed, or put back where it was if it is what ``out`` held.

    Args:
        out: may be absent or an empty folder.
        may_replace: asked with anything else that is at ``out``; it says no with False or an error of its own.

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
                # Killed while one took the other's place.
                shutil.rmtree(former) if _occupied(out) else former.rename(out)
            occupied = _occupied(out)
            if occupied and not may_replace(out):
                raise UserError(f"{out}: is neither empty nor a packed data set alone; name another --out")
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
            raise
        _sync(out.parent)
        shutil.rmtree(former, ignore_errors=True)


def _occupied(place: Path) -> bool:
    """Whether anything but an empty folder is there."""
    return place.exists() and not (place.is_dir() and not any(place.iterdir()))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the only lock on a folder; it ends with the process, however that ends."""
    busy = UserError(f"{folder}: another conversion is writing here; wait for it or name another --out")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError:
            pass  # some network file systems have no locks: conversion goes on there, without this protection
        if not folder.exists() or not os.path.samestat(folder.stat(), os.fstat(descriptor)):
            raise busy  # the other one has just finished and taken the folder with it
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
