"""Errors that the user can fix: one clear line on standard error, exit code 2, never a traceback."""

import io
import sys
from collections.abc import Callable

__all__ = ["ImageError", "UserError", "run_command"]


class ImageError(Exception):
    """Why an image cannot be used; the message follows the file's name on the same line."""


class UserError(Exception):
    """Something the user can fix: a missing file, a wrong key, corrupt data. The message is one line."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command-line program's ``main`` and exit with its code (None is 0).

    A ``UserError`` becomes ``error: <one line>`` on standard error and exit code 2, as argparse does for bad flags;
    Ctrl-C, where the program does not handle it, becomes ``stopped`` and 130.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as on standard error: file names need not be UTF-8
    try:
        sys.exit(main() or 0)
    except UserError as error:
        line = " ".join(str(error).split())
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
