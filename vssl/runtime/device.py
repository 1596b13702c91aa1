"""The device of a run, and algorithms that repeat their bits."""

import os

import torch

from pipelines.errors import UserError

__all__ = ["repeat_bits", "resolve_device"]


def resolve_device(name: str) -> torch.device:
    """``auto`` means a GPU if there is one. Raises UserError for ``cuda`` without a GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: torch sees no CUDA device here; use cpu or auto")
    return torch.device(name)


def repeat_bits() -> None:
    """From now on, and until this process ends, use only GPU algorithms that give the same bits for the same input.

    Call it before the GPU is used. An operation that has no such algorithm raises RuntimeError.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    torch.use_deterministic_algorithms(True)  # in cuDNN too
    torch.utils.deterministic.fill_uninitialized_memory = False  # a search for bugs, with many kernels
    torch._inductor.config.deterministic = True  # compiled code chooses none of its kernels by their time
