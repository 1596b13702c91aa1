"""Counter-based random numbers: a pure integer hash of their purpose, on any device, in any order.

The same (seed, epoch, index, stream, draw) gives the same number whatever the batch, loader, world size or device.
The mixer is SplitMix64's finaliser (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014).
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipelines.inductor_hints import materialised

__all__ = ["Draws", "named_uniform", "normal", "uniform"]


def _signed(value: int) -> int:
    """The int64 that has the bits of an unsigned 64-bit ``value``."""
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift of int64; torch's own is arithmetic."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift_right(value, 30)) * _MIX_1
    value = (value ^ _shift_right(value, 27)) * _MIX_2
    return value ^ _shift_right(value, 31)


def _state(seed: Tensor | int, epoch: Tensor | int, index: Tensor, stream: Tensor | int) -> Tensor:
    """int64 [B]: the state from which all numbers of a sample in one stream are computed; [V, B] for streams [V, 1]."""
    # Inductor would inline each mixer twice, so its C++ doubles per mixer: store the value. On a GPU storing costs a
    # kernel each, so do not.
    keep = (lambda value: value) if index.is_cuda else materialised
    state = keep(_mix(index + _GAMMA))
    for word in (seed, epoch, stream):
        salt = word * _MIX_2 + _GAMMA
        state = keep(_mix(state ^ (_signed(salt) if isinstance(salt, int) else salt)))
    return state


def _numbers(state: Tensor, first: int, count: int) -> Tensor:
    """int64 [..., count] of well mixed bits: numbers ``first``, ``first + 1``, ... of every state [...]."""
    # The counter itself is never multiplied: Inductor turns an arange times a constant into C++ index arithmetic, where
    # an overflow is undefined behaviour.
    return _mix((state[..., None] ^ torch.arange(first, first + count, device=state.device)) * _GAMMA)


def _unit(bits: Tensor) -> Tensor:
    """The upper 53 bits as float64 in [0, 1)."""
    return _shift_right(bits, 11).to(torch.float64) * 2.0**-53


def uniform(seed: Tensor | int, epoch: Tensor | int, index: Tensor, stream: int, draws: int) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2**-53.

    Args:
        seed, epoch: integers or int64 scalars on the device of ``index`` (which a replayed graph can change).
        index: int64 [B], the samples' positions in the packed split.
        stream: separates different uses (a view's number, the noise of an objective).
        draws: how many numbers per sample.

    Returns:
        float64 [B, draws].
    """
    return _unit(_numbers(_state(seed, epoch, index, stream), 0, draws))


def normal(seed: Tensor | int, epoch: Tensor | int, index: Tensor, stream: int, draws: int) -> Tensor:
    """Standard normal numbers, float32 [B, draws], by the Box-Muller transform; arguments as for ``uniform``."""
    half = (draws + 1) // 2
    # 24 bits are exact in float32: a uniform number rounded from float64 could become 1 and its normal infinite.
    numbers = _shift_right(_numbers(_state(seed, epoch, index, stream), 0, 2 * half), 40).float() * 2.0**-24
    radius = torch.sqrt(-2.0 * torch.log1p(-numbers[:, :half]))
    angle = 2.0 * math.pi * numbers[:, half:]
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :draws]


def named_uniform(
    seed: Tensor | int, epoch: Tensor | int, index: Tensor, streams: Tensor, name: str, draws: int
) -> Tensor:
    """Uniform numbers for every sample in every stream, which are other ones for another ``name``.

    Args:
        seed, epoch, index: as for ``uniform``.
        streams: int64 [V].
        draws: how many numbers per sample and stream.

    Returns:
        float64 [V * B, draws], stream after stream.
    """
    state = _state(seed, epoch, index, streams[:, None]).flatten()
    return _unit(_numbers(_mix(state ^ _signed(_hash_name(name))), 0, draws))


class Draws:
    """Uniform numbers of the same samples in several streams, asked for by name.

    The numbers of a name depend on that name and the arguments below, never on which other names are asked for.

    Args:
        seed, epoch, index: as for ``uniform``.
        streams: V of them.
        offsets: for some names, the index in ``uniform`` of their first number. Any other name has its own block
            of 65,536 numbers, chosen among 2**48 by a hash of the name.
    """

    def __init__(
        self,
        seed: Tensor | int,
        epoch: Tensor | int,
        index: Tensor,
        streams: Sequence[int],
        offsets: Mapping[str, int],
    ) -> None:
        self._state = torch.stack([_state(seed, epoch, index, stream) for stream in streams], dim=1)
        self._offsets = offsets

    def uniform(self, name: str, count: int = 1) -> Tensor:
        """float64 [B, V, count], as ``uniform``; ``count`` is at most 65,536."""
        if name in self._offsets:
            return _unit(_numbers(self._state, self._offsets[name], count))
        return _unit(_numbers(self._state ^ _signed(_hash_name(name) << 16), 0, count))


def _hash_name(name: str) -> int:
    """64 bits of a name's characters (FNV-1a: Fowler, Noll, Vo), in plain arithmetic that torch.compile can follow."""
    value = 0xCBF29CE484222325
    for character in name:
        value = (value ^ ord(character)) * 0x100000001B3 % 2**64
    return value
