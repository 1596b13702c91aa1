"""Which views are paired, and how pairs are weighted."""

import pytest
import torch

from pipelines.config import AugmentConfig
from vssl.methods.pairs import (
    TWO_VIEWS,
    ViewCounts,
    mean_over_pairs,
    mean_over_views,
    pair_rows,
    pair_with_each_teacher,
)

B = 3
COUNTS = ViewCounts(full=2, local=2, local_weight=0.25)


def rows(views):
    """Row v * B + b is [v, b]."""
    return torch.tensor([[view, image] for view in range(views) for image in range(B)])


def test_every_view_is_paired_with_every_other_full_view():
    assert [pair[:2] for pair in TWO_VIEWS.pairs] == [(0, 1), (1, 0)]
    assert [pair[:2] for pair in ViewCounts(3).pairs] == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    assert [tuple(pair) for pair in COUNTS.pairs] == [
        (0, 1, 1.0),
        (1, 0, 1.0),
        (2, 0, 0.25),
        (2, 1, 0.25),
        (3, 0, 0.25),
        (3, 1, 0.25),
    ]


def test_counts_are_those_of_the_config():
    assert ViewCounts.of(AugmentConfig()) == TWO_VIEWS
    assert ViewCounts.of(AugmentConfig(views=4, local_views=6, local_weight=0.5)) == ViewCounts(4, 6, 0.5)


def test_rows_of_pairs_belong_to_the_same_image():
    student, teacher = pair_rows(COUNTS, rows(4), rows(2))
    assert torch.equal(student[:, 1], teacher[:, 1])
    found = list(zip(student[::B, 0].tolist(), teacher[::B, 0].tolist(), strict=True))
    assert found == [pair[:2] for pair in COUNTS.pairs]


@pytest.mark.parametrize("counts", [TWO_VIEWS, ViewCounts(3), COUNTS])
def test_each_teachers_view_is_used_in_one_call(counts):
    calls = []

    def compute(student, teacher):
        calls.append(teacher[0, 0].item())
        own = teacher.repeat(len(student) // B, 1)
        assert torch.equal(student[:, 1], own[:, 1])  # the same image
        return 10 * student[:, 0] + own[:, 0]

    parts = pair_with_each_teacher(counts, compute, rows(counts.full + counts.local), rows(counts.full))
    assert calls == list(range(counts.full))
    assert [part.tolist() for part in parts] == [[10 * pair.student + pair.teacher] * B for pair in counts.pairs]


def test_pairs_with_local_views_count_less():
    values = torch.arange(6 * B, dtype=torch.float32)
    each = values.view(6, B).mean(dim=1)
    expected = (each[:2].sum() + 0.25 * each[2:].sum()) / 3
    torch.testing.assert_close(mean_over_pairs(COUNTS, values), expected)
    torch.testing.assert_close(mean_over_views(COUNTS, torch.tensor([1.0, 2.0, 3.0, 4.0])), torch.tensor(4.75 / 2.5))
    assert torch.equal(mean_over_pairs(TWO_VIEWS, values), values.mean())
