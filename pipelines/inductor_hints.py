"""Which intermediate values compiled code keeps in memory, and in which precision."""

from torch import Tensor

__all__ = ["materialised", "materialised_as_half"]


def materialised(value: Tensor) -> Tensor:
    """Return ``value`` from a buffer. Otherwise Inductor may compute it again wherever it is read."""
    return value.as_strided(value.shape, value.stride())


def materialised_as_half(value: Tensor) -> Tensor:
    """Return ``value``, float32 in [0, 1]; on a GPU from a float16 buffer, which halves the bytes moved.

    That rounds it by at most 2**-12, a sixteenth of a step of 8-bit pixels. On a CPU it is returned unchanged.
    """
    return materialised(value.half()).float() if value.is_cuda else value
