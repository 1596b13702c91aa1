"""Metrics that stay on the device until a log line is due."""

import math

import torch
from torch import Tensor

__all__ = ["MeanAccumulator"]


class MeanAccumulator:
    """Running means of named scalars, on their device. Adding needs no host sync, reading needs one.

    ``add`` works in place and can be part of a captured step.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._total: Tensor | None = None  # sums, then the count

    def add(self, values: dict[str, Tensor], good: Tensor | None = None) -> None:
        """Add scalars; the names must be the same every time. good: bool, a scalar; False: leave this step out."""
        scalars = [value.detach().float() for value in values.values()]
        row = torch.stack([*scalars, torch.ones_like(scalars[0])])
        if self._total is None:
            self._names, self._total = list(values), torch.zeros_like(row)
        self._total += row if good is None else torch.where(good, row, 0.0)

    def read(self) -> dict[str, float]:
        """The means since the last reading, NaN if no step counted. One device-to-host copy."""
        assert self._total is not None, "nothing has been added"
        *sums, count = self._total.tolist()
        self._total.zero_()
        return {name: value / count if count else math.nan for name, value in zip(self._names, sums, strict=True)}
