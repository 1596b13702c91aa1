"""Work in a forked process, which may crash or hang without stopping the tests."""

import os
import resource
import select
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

from pipelines.errors import UserError

__all__ = ["in_child"]

_HANG = 600  # seconds; far more than any child needs, because a busy machine must not look like a hang
_MEMORY = 6 * 2**30  # bytes that a child may map beyond what it inherits


def in_child(work: Callable[[], str], kill_after: float | None = None) -> str:
    """Run ``work`` in a forked process. Returns its result, or ``refused: <line>`` for a UserError, ``exception: ...``,
    ``signal N``, or ``hang`` after 10 minutes. ``kill_after``: seconds until SIGKILL, which returns ``killed``."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + _MEMORY,) * 2)
        try:
            answer = work()
        except UserError as error:
            answer = f"refused: {' '.join(str(error).split())}"
        except BaseException:
            answer = f"exception: {traceback.format_exc()}"
        os.write(send, answer.encode()[:60_000])
        os._exit(0)
    os.close(send)
    with open(receive, "rb") as answers:
        ready = select.select([answers], [], [], _HANG if kill_after is None else kill_after)[0]
        if not ready:
            os.kill(child, signal.SIGKILL)
        answer = answers.read().decode(errors="replace")
    status = os.waitpid(child, 0)[1]
    if not ready:
        return "hang" if kill_after is None else "killed"
    return answer if os.WIFEXITED(status) else f"signal {os.WTERMSIG(status)}"
