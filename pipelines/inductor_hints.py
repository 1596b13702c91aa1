"""Which intermediate values compiled code keeps in memory, and in which precision."""

from torch import Tensor

__all__ = ["stored", "stored_as_half"]


def stored(value: Tensor) -> Tensor:
    """``value``, which Inductor keeps in a buffer here. Otherwise it may compute it anew wherever it is read."""
    return value.as_strided(value.shape, value.stride())


def stored_as_half(value: Tensor) -> Tensor:
    """``value``, float32 in [0, 1]; on a GPU kept in memory as float16, which halves the bytes that are moved.

    There it is rounded, by at most 2**-12: a sixteenth of a step of 8-bit pixels. On a CPU it stays as it is.
    """
    return stored(value.half()).float() if value.is_cuda else value
