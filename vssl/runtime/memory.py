"""Out of memory, said in one line."""

import contextlib
from collections.abc import Iterator

import torch

from pipelines.errors import UserError

__all__ = ["explain_out_of_memory"]

# torch's allocator for CPUs raises a plain RuntimeError, CUDA's libraries too.
_PLAIN = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "std::bad_alloc")


@contextlib.contextmanager
def explain_out_of_memory(remedy: str) -> Iterator[None]:
    """Turn an error for want of memory, of the host or of a GPU, into a ``UserError`` that says what to do.

    Raises:
        UserError: the block inside ran out of memory.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        text = str(error)
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(part in text for part in _PLAIN):
            raise
        on_gpu = isinstance(error, torch.OutOfMemoryError) or "CUDA" in text or "CUBLAS" in text
        raise UserError(f"out of memory {'of the GPU' if on_gpu else 'of the host'}: {remedy}") from error
