"""Types for command-line arguments, what is installed, and how a program is started and stopped."""

import argparse
import importlib.util
import math
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["exit_on_signals", "fraction", "installed", "positive", "started_as", "whole"]


def whole(low: int, high: float = math.inf) -> Callable[[str], int]:
    """An argument type: a whole number from ``low`` to ``high``, both included."""

    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            limits = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise argparse.ArgumentTypeError(f"{text} must be {limits}")
        return value

    parse.__name__ = "whole number"  # argparse's message names it
    return parse


def positive(text: str) -> float:
    """An argument type: a finite number greater than 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be greater than 0")
    return value


positive.__name__ = "number"  # argparse's message names it


def fraction(text: str) -> float:
    """An argument type: a number between 0 and 1, both excluded."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be between 0 and 1, both excluded")
    return value


fraction.__name__ = "number"


def installed(module: str) -> bool:
    """Whether a module, dotted or not, can be imported, without importing it itself."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def started_as() -> str:
    """The command that started this process, without its arguments: ``vssl``, ``python -m vssl`` or ``python FILE``."""
    file = Path(sys.argv[0])
    if file.name == "__main__.py":
        return f"python -m {file.parent.name}"
    return f"python {shlex.quote(str(file))}" if file.suffix == ".py" else file.name


def exit_on_signals() -> None:
    """Let SIGINT and SIGTERM raise ``SystemExit`` with 128 + the signal, so that what is unfinished is removed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
