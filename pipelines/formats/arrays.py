"""Arrays in .npy files, checked before use, and arrays in memory that a decoder writes to fast."""

import math
from pathlib import Path

import numpy as np

from pipelines.errors import UserError

__all__ = ["open_array", "unaligned"]


def open_array(path: Path, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray:
    """Map a C-contiguous array read-only; None in ``shape`` stands for any length.

    Raises:
        UserError: the file is damaged or cut off, or its array is of another type or shape.
    """
    try:
        array = np.lib.format.open_memmap(path, "r")  # never unpickles
    except Exception as error:  # a damaged header can raise any error
        raise UserError(f"{path}: damaged or not a .npy file: {error}") from error
    agrees = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
    if array.dtype != dtype or not agrees or not array.flags.c_contiguous:
        wanted = ", ".join("any" if side is None else str(side) for side in shape)
        raise UserError(f"{path}: holds {array.dtype} {list(array.shape)} instead of {np.dtype(dtype)} [{wanted}]")
    return array


def unaligned(shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised uint8 array at an odd address.

    libjpeg-turbo decodes faster into it: rows that begin at a multiple of 32 bytes are written past the caches.
    """
    return np.empty(1 + math.prod(shape), np.uint8)[1:].reshape(shape)
