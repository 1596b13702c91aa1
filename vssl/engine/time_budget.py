"""Plan the number of steps that fit into a given time (``train.minutes``)."""

import math
import time
from collections.abc import Callable

__all__ = ["TimeBudget"]

_SHARE = 0.9  # of the time; the rest covers variations and the last checkpoint
_SETTLE, _MEASURE = 10, 3  # steps, at least; a slow step needs fewer to settle


class TimeBudget:
    """Measures the pace of a run's first seconds, and plans its number of steps from it.

    The time starts when this object is made: compiling, capturing and evaluations count.

    Args:
        minutes: for the whole run.
        clock: seconds; for tests.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock, self._started = 60 * minutes, clock, clock()
        self._window = min(5.0, 0.02 * self._seconds)  # seconds to settle, then seconds to measure
        # When the steps began, and when measuring began: the clock, the same without evaluations, and steps taken.
        self._first: tuple[float, float, int] | None = None
        self._settled: tuple[float, float, int] | None = None
        self._paused = 0.0  # seconds of evaluations since the steps began
        self.evaluation = 0.0  # seconds that one takes
        self.step = 0.0  # seconds that one takes, once measured

    def note_evaluation(self, seconds: float) -> None:
        """An evaluation took so long."""
        self.evaluation = seconds
        self._paused += seconds

    def note_step(self, done: int) -> bool:
        """One more step was taken, ``done`` in all; returns whether the pace is known.

        The first steps do not count: their batches were loaded while the step was compiled.
        """
        now = self._clock(), self._clock() - self._paused, done
        if self._first is None:
            self._first = now
        elif self._settled is None:
            steps, seconds = done - self._first[2], now[0] - self._first[0]
            if steps >= _SETTLE or (steps >= 2 and seconds >= self._window):
                self._settled = now
        else:
            steps, seconds = done - self._settled[2], now[0] - self._settled[0]
            self.step = (now[1] - self._settled[1]) / steps
            return steps >= _MEASURE and seconds >= self._window
        return False

    def plan(self, done: int, interval: int, limit: int) -> int:
        """The number of steps of the whole run, at least ``done`` + 1 and at most ``limit``.

        Args:
            done: steps taken so far.
            interval: steps between two evaluations; the run ends with one. 0: there are none.
        """
        left = _SHARE * self._seconds - (self._clock() - self._started)
        each = self.step
        if interval:
            left, each = left - self.evaluation, each + self.evaluation / interval
        return min(limit, done + max(1, math.floor(left / max(each, 1e-9))))

    def describe(self, plan: int, per_epoch: int, epochs: int) -> str:
        """One line on the plan of so many steps."""
        return (
            f"train.minutes={self._seconds / 60:g}: {plan:,} steps ({plan / per_epoch:.4g} of {epochs} epochs), "
            f"at {self.step:.3g} s per step and {self.evaluation:.3g} s per evaluation"
        )
