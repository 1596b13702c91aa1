"""Run a program of the project as its command line says, within this process: a new Python would import torch anew,
which takes seconds. ``tests/programs/test_programs.py`` starts each program once for real."""

import contextlib
import io
import runpy
import signal
import subprocess
import sys
import warnings
from unittest import mock

from vssl.__main__ import main


def run_program(*words: object) -> subprocess.CompletedProcess:
    """``python WORDS``, or ``vssl WORDS`` if the first is not a file of Python: its exit code, and what it printed."""
    command = list(map(str, words))
    script = bool(command) and command[0].endswith(".py")
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with (
        mock.patch.object(sys, "argv", command if script else ["vssl", *command]),
        mock.patch.object(sys, "path", list(sys.path)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        try:
            if script:
                runpy.run_path(command[0], run_name="__main__")
            else:
                main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())
