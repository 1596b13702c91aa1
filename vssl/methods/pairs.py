"""Pairs of views: which views a loss compares, and the weights of the pairs.

The teacher sees full views. A student's view, full or local, is paired with each of them but itself. Rows are view
after view: row v * B + b belongs to view v of image b; local views follow the full ones.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.config import AugmentConfig

__all__ = [
    "TWO_VIEWS",
    "Pair",
    "ViewCounts",
    "mean_over_pairs",
    "mean_over_views",
    "pair_rows",
    "pair_with_each_teacher",
]


class Pair(NamedTuple):
    """A student's and a teacher's view, by number, and the weight of their term in the loss."""

    student: int
    teacher: int
    weight: float


class ViewCounts(NamedTuple):
    """The numbers of views of an image, and the weight of local ones."""

    full: int = 2
    local: int = 0
    local_weight: float = 1.0  # of a pair with a local view, and of a term of a local view

    @classmethod
    def of(cls, augment: AugmentConfig) -> "ViewCounts":
        """The counts of a config."""
        return cls(augment.views, augment.local_views or 0, augment.local_weight)

    @property
    def weights(self) -> list[float]:
        """The weight of each view, full ones first."""
        return [1.0] * self.full + [self.local_weight] * self.local

    @property
    def pairs(self) -> list[Pair]:
        """All pairs, the student's view 0 first. Two full views: (0, 1) and (1, 0)."""
        return [
            Pair(student, teacher, weight)
            for student, weight in enumerate(self.weights)
            for teacher in range(self.full)
            if teacher != student
        ]


TWO_VIEWS = ViewCounts()


def pair_rows(counts: ViewCounts, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of every pair, pair after pair: student's [(V + L) * B, ...], teacher's [V * B, ...] -> [P * B, ...]
    each."""
    pairs = counts.pairs
    return (
        _select(student, counts.full + counts.local, [pair.student for pair in pairs]),
        _select(teacher, counts.full, [pair.teacher for pair in pairs]),
    )


def _select(rows: Tensor, views: int, chosen: list[int]) -> Tensor:
    if chosen == list(range(views)):  # two full views
        return rows
    parts = rows.chunk(views)
    return torch.cat([parts[view] for view in chosen])


def pair_with_each_teacher(
    counts: ViewCounts, compute: Callable[..., Tensor], student: Tensor, *teacher: Tensor
) -> list[Tensor]:
    """Call ``compute`` once for every view of the teacher, with all views of the student that are paired with it.

    Args:
        compute: from the student's rows [n * B, ...] and the teacher's rows of one view [B, ...] to [n * B, ...].
        student: [(V + L) * B, ...].
        teacher: tensors [V * B, ...].

    Returns:
        of every pair, in the order of ``counts.pairs``, the result [B, ...].
    """
    students, teachers = student.chunk(counts.full + counts.local), [part.chunk(counts.full) for part in teacher]
    found: dict[tuple[int, int], Tensor] = {}
    for view in range(counts.full):
        paired = [pair.student for pair in counts.pairs if pair.teacher == view]
        rows = torch.cat([students[one] for one in paired]) if len(paired) > 1 else students[paired[0]]
        parts = compute(rows, *(part[view] for part in teachers)).chunk(len(paired))
        found |= {(one, view): part for one, part in zip(paired, parts, strict=True)}
    return [found[pair.student, pair.teacher] for pair in counts.pairs]


def mean_over_pairs(counts: ViewCounts, rows: Tensor) -> Tensor:
    """The weighted mean over pairs and images of ``rows`` [P * B], or [P], pair after pair: a scalar."""
    return _weighted(rows, [pair.weight for pair in counts.pairs])


def mean_over_views(counts: ViewCounts, values: Tensor) -> Tensor:
    """The weighted mean of ``values`` [n * (V + L)], n of each view, full views first: a scalar."""
    return _weighted(values, counts.weights)


def _weighted(values: Tensor, weights: list[float]) -> Tensor:
    if len(set(weights)) == 1:
        return values.mean()
    each = values.unflatten(0, (len(weights), -1)).mean(dim=1)
    return sum(weight * mean for weight, mean in zip(weights, each.unbind(), strict=True)) / sum(weights)
