"""Say what a process waits for, if it takes long: a loader or another process that hangs is otherwise silent."""

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

__all__ = ["HangWatch"]


def _say(line: str) -> None:
    # The process's own standard error: only the first of several processes prints otherwise.
    print(line, file=sys.__stderr__, flush=True)


class HangWatch:
    """A context in which ``note`` says what the process does next. If nothing new is noted for ``after`` seconds, a
    line says what takes so long, and again after twice the time.

    Args:
        process: names the process.
        after: seconds.
        say: prints a line; called from a thread.
    """

    def __init__(self, process: str, after: float = 120.0, say: Callable[[str], None] = _say) -> None:
        self._process, self._after, self._say = process, after, say
        self._doing, self._since = "", time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hang-watch", daemon=True)

    def note(self, doing: str) -> None:
        """From now on the process is ``doing`` this."""
        self._doing, self._since = doing, time.monotonic()

    def note_batch(self, step: int, per_epoch: int) -> None:
        """The process now waits for the loader's batch of the step after ``step``."""
        epoch, batch = divmod(step, per_epoch)
        self.note(f"waiting for the loader's batch {batch + 1} of epoch {epoch + 1} (step {step + 1})")

    def _watch(self) -> None:
        told, limit = self._since, self._after
        while not self._ended.wait(min(1.0, self._after / 4)):
            doing, since = self._doing, self._since
            if told != since:
                told, limit = since, self._after
            waited = time.monotonic() - since
            if waited >= limit:
                self._say(f"{self._process} has been {doing} for {waited:.0f} s")
                limit *= 2

    def __enter__(self) -> "HangWatch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
