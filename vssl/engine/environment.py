"""Everything needed to repeat a run: versions, hardware, world size, commit and uncommitted changes."""

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

__all__ = ["CHECKOUT", "Commit", "describe_environment", "read_commit"]

CHECKOUT = Path(__file__).resolve().parents[2]  # the root of this program's source
_LARGEST_SOURCE = 2**16  # bytes; larger untracked files are data

_PACKAGES = ("torch", "torchvision", "numpy", "ffcv", "nvidia-dali-cuda130", "triton", "pillow")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


class Commit(NamedTuple):
    """Which source code ran."""

    commit: str | None  # the full hash; None outside a git checkout
    dirty: str | None  # SHA-256 of the uncommitted changes; None: there are none


def read_commit(root: Path = CHECKOUT) -> Commit:
    """The commit of the git checkout at ``root``, and a digest of its uncommitted changes.

    The digest covers ``git diff HEAD`` and the names and contents of the untracked files that git does not ignore. For
    files over 64 KiB, which are data and not source, it takes the size instead of the content. ``results/`` and
    ``docs/`` do not count, because no program runs them and measurements write there.
    """

    def git(*words: str) -> bytes:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=True).stdout

    where = ("--", ".", ":(exclude)results", ":(exclude)docs")
    try:
        if Path(os.fsdecode(git("rev-parse", "--show-toplevel").rstrip(b"\n"))) != root.resolve():
            return Commit(None, None)  # a copy inside another project's checkout
        commit = git("rev-parse", "HEAD").decode().strip()
        changes = git("diff", "HEAD", "--binary", "--no-ext-diff", "--no-color", *where)
        untracked = git("ls-files", "--others", "--exclude-standard", "-z", *where).split(b"\0")[:-1]
    except (OSError, subprocess.CalledProcessError):
        return Commit(None, None)
    if not changes and not untracked:
        return Commit(commit, None)
    digest = hashlib.sha256(changes)
    for name in sorted(untracked):
        digest.update(b"\0" + name + b"\0" + _content(root / os.fsdecode(name)))
    return Commit(commit, digest.hexdigest())


def _content(path: Path) -> bytes:
    """An untracked path's part of the digest: content, size or, for a link, its target."""
    if path.is_symlink():
        return os.fsencode(path.readlink())
    if not path.is_file():
        return b""
    size = path.stat().st_size
    return path.read_bytes() if size <= _LARGEST_SOURCE else str(size).encode()


def describe_environment(device: torch.device, world_size: int) -> dict:
    """Plain values for ``environment.json``; packages that are not installed are null."""
    versions: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    hardware = {
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }
    return {"versions": versions, "hardware": hardware, "world_size": world_size, **read_commit()._asdict()}
