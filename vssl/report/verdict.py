"""The verdict on a run: one sentence that depends on its figures and their standard errors."""

import math
from typing import NamedTuple

from torch import Tensor

from vssl.report.measure import Figures

__all__ = ["ERRORS", "Difference", "Share", "describe_verdict", "difference", "share"]

ERRORS = 2  # a difference counts if it is larger than so many standard errors
_RANK_LOST = 0.5  # RankMe has no standard error: only a large loss, a partial collapse, changes the verdict


class Share(NamedTuple):
    """A share of images and its standard error, both in [0, 1]; as text, in per cent."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} ± {100 * self.error:.1f}"


class Difference(NamedTuple):
    """The difference of two shares, in [-1, 1], and its standard error; as text, in percentage points."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{100 * self.value:+.1f} ± {100 * self.error:.1f}"

    @property
    def sign(self) -> int:
        """1 or -1 if the difference is larger than ``ERRORS`` standard errors, else 0."""
        if abs(self.value) <= ERRORS * self.error:
            return 0
        return 1 if self.value > 0 else -1


def share(hits: Tensor) -> Share:
    """The share of true values in bool [N], with its binomial standard error sqrt(p (1 - p) / N)."""
    value = hits.double().mean().item()
    return Share(value, math.sqrt(value * (1 - value) / len(hits)))


def difference(hits: Tensor, others: Tensor) -> Difference:
    """The share of ``hits`` minus that of ``others``, bool [N] of the same images.

    Both results are for the same images, so only images on which they disagree matter (McNemar's test, Psychometrika
    12, 1947). Let b and c count the images that only one of them hits. If nothing differs, such an image is equally
    likely to count for either, and b - c has the standard error sqrt(b + c) (binomial).
    """
    only, others_only = (hits & ~others).sum().item(), (others & ~hits).sum().item()
    return Difference((only - others_only) / len(hits), math.sqrt(only + others_only) / len(hits))


def describe_verdict(figures: dict[str, Figures]) -> str:
    """One sentence: the verdict, and the figures that it rests on.

    Args:
        figures: by the names of ``NETWORKS``.
    """
    trained, untrained, pixels = (figures[name] for name in ("trained", "untrained", "pixels"))
    if trained.correct is None or untrained.correct is None or pixels.correct is None:
        return _without_labels(trained, untrained)
    gain, lead = difference(trained.correct, untrained.correct), difference(trained.correct, pixels.correct)
    better = {
        1: "Pretraining helped",
        0: "Pretraining improved the network, but it is not shown to be better than raw pixels",
        -1: "Pretraining improved the network, but raw pixels are better",
    }
    verdict = _describe_gain(gain, better[lead.sign])
    return (
        f"{verdict}: kNN recognises {share(trained.correct)} % of {len(trained.correct):,} images with the trained "
        f"network, {share(untrained.correct)} % with the same network before training (difference {gain} points), and "
        f"{share(pixels.correct)} % from raw pixels (difference {lead} points)."
    )


def _without_labels(trained: Figures, untrained: Figures) -> str:
    gain = difference(trained.matched, untrained.matched)
    helped = "Pretraining helped"
    if trained.rankme < _RANK_LOST * untrained.rankme:
        helped = "Mixed evidence: views are matched better, but features use less than half of the dimensions"
    return (
        f"{_describe_gain(gain, helped)}: of {len(trained.matched):,} augmented views, {share(trained.matched)} % are "
        f"nearest to the other view of the same image with the trained network, {share(untrained.matched)} % with the "
        f"same network before training (difference {gain} points); the features' effective rank (RankMe) is "
        f"{trained.rankme:.1f}, before training {untrained.rankme:.1f}."
    )


def _describe_gain(gain: Difference, better: str) -> str:
    other = {0: "No evidence that pretraining helped", -1: "Pretraining made the network worse"}
    return other.get(gain.sign, better)
