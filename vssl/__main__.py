"""The command ``vssl NAME ...``, also as ``python -m vssl NAME ...``: runs the program of that name."""

import argparse
import ast
import difflib
import importlib
import sys
from importlib import resources

import vssl
from pipelines.errors import UserError, run_command
from vssl.commands import PROGRAMS
from vssl.commands.arguments import started_as

__all__ = ["main"]


def main() -> None:
    """Run the program that the command line names, and exit with its code."""
    run_command(_run)


def _run() -> int | None:
    prog = started_as()
    parser = _parser(prog)
    arguments = parser.parse_args()
    name = arguments.name
    if name is None:
        parser.print_help(sys.stderr)
        return 2
    if name not in PROGRAMS:
        near = difflib.get_close_matches(name, PROGRAMS, n=1, cutoff=0.0)[0]
        raise UserError(f"no program {name!r}; did you mean {near!r}? {prog} --help lists all")
    program = importlib.import_module(f"vssl.commands.{name}")  # it alone: every program imports much
    code: int | None = program.main(arguments.words, f"{prog} {name}")
    return code


def _parser(prog: str) -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:<12}{_summary(name)}" for name in PROGRAMS)
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [-h] [--version] NAME ...",
        description=f"{vssl.__doc__}\n\nPrograms:\n{lines}",
        epilog=f"{prog} NAME --help explains a program.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vssl {vssl.__version__}")
    parser.add_argument("name", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _summary(name: str) -> str:
    """The first line of a program's docstring, without importing the program."""
    tree = ast.parse(resources.files("vssl.commands").joinpath(f"{name}.py").read_text())
    return (ast.get_docstring(tree) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
