"""Signals that ask a run to stop: of people, of batch systems, of a lost terminal."""

import signal
import time
from types import TracebackType
from typing import Any

__all__ = ["Signals", "Stopped"]

_HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


class Signals:
    """A context in which a first signal is noted, to be answered between two steps; a second one of its kind, more than
    a second later, ends the process at once (torchrun passes on a signal that may have reached the process already).
    Signals that are ignored from the start (by nohup) stay ignored.

    Attributes:
        received: the number of the last signal; 0: none came.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}
        self._first: dict[int, float] = {}  # when each kind came first

    def _note(self, number: int, _frame: object) -> None:
        self.received, now = number, time.monotonic()
        if now - self._first.setdefault(number, now) > 1:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)

    def __enter__(self) -> "Signals":
        heeded = [number for number in _HEEDED if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.getsignal(number) for number in heeded}
        for number in heeded:
            signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Stopped(Exception):
    """A signal asked the run to stop; everything is saved. ``code``: the process's exit code, 128 + signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.code = 128 + number
