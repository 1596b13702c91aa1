"""Reports of figures: each names the command, the environment and the commit that produced it."""

import argparse
import shlex
import sys
from pathlib import Path

import torch

from pipelines.errors import UserError
from pipelines.files import check_writable
from vssl.commands.arguments import started_as
from vssl.engine.environment import CHECKOUT, describe_environment, read_commit

__all__ = ["add_allow_dirty", "add_json", "add_plot", "check_outputs", "check_published", "report_head"]


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json FILE`` and ``--allow-dirty``."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    add_allow_dirty(parser)


def add_allow_dirty(parser: argparse.ArgumentParser) -> None:
    """Add ``--allow-dirty``; see ``check_published``."""
    parser.add_argument(
        "--allow-dirty", action="store_true", help="write below results/ although the code is not committed"
    )


def add_plot(parser: argparse.ArgumentParser, help: str = "write a bar chart") -> None:
    """Add ``--plot FILE.png``."""
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help=help)


def check_outputs(*paths: Path | None, allow_dirty: bool = False) -> None:
    """Check that every output file can be written and may be published. Call it before measuring, which takes time.

    Args:
        paths: the output files; None: an output that was not requested.

    Raises:
        UserError: a file cannot be written, or as ``check_published``.
    """
    for path in paths:
        if path is not None:
            check_writable(path)
            if path.suffix == ".json" and not allow_dirty:
                check_published(path)


def check_published(path: Path, root: Path = CHECKOUT) -> None:
    """Figures below ``results/`` are published: their readers must be able to get the code that produced them.

    Raises:
        UserError: ``path`` lies below ``results/`` of the checkout ``root``, which has uncommitted
            changes (see ``vssl.engine.environment.read_commit``) or is not a git checkout.
    """
    if not path.resolve().is_relative_to(root.resolve() / "results"):
        return
    state = read_commit(root)
    if state.commit is None:
        fault = f"{root} is not a git checkout"
    elif state.dirty is not None:
        fault = "changes outside results/ and docs/ are not committed"
    else:
        return
    raise UserError(
        f"{path}: figures below results/ name their commit, but {fault}: commit first, write elsewhere, or give "
        "--allow-dirty"
    )


def report_head(device: torch.device, processes: int = 1) -> dict:
    """The ``schema``, ``command`` and ``environment`` of a report. Call it before measuring: the checkout may change
    meanwhile. ``schema`` counts the layouts of reports; a report without it is older than the first."""
    return {
        "schema": 1,
        "command": f"{started_as()} {shlex.join(sys.argv[1:])}",
        "environment": describe_environment(device, world_size=processes),
    }
