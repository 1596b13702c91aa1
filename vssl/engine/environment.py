"""What would be needed to repeat a run: versions, hardware, world size."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

__all__ = ["describe_environment"]

_PACKAGES = ("torch", "torchvision", "numpy", "ffcv", "nvidia-dali-cuda130", "triton", "pillow")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    """The commit of this program's own checkout, with ``+`` for uncommitted changes."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


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
    return {"versions": versions, "hardware": hardware, "world_size": world_size, "commit": _commit()}
