"""The command vssl, the files of a checkout that do the same, and the small programs, run as a user runs them."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from support.programs import run_program
from vssl import __version__
from vssl.commands import PROGRAMS

TOOLS = [path for path in sorted(Path("tools").glob("*.py")) if "__main__" in path.read_text()]


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_a_tool_is_executable_and_explains_itself(tool):
    assert os.access(tool, os.X_OK) and tool.read_text().startswith("#!/usr/bin/env python\n")
    result = run_program(tool, "--help")
    assert result.returncode == 0 and "usage:" in result.stdout


EXPLAIN = """
import runpy, sys
for path in sys.argv[1:]:
    try:
        sys.argv = [path, "--help"]
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        assert not end.code
"""


def test_programs_need_nothing_but_the_repository():
    """Started from elsewhere, one after another, in a Python of their own."""
    command = [sys.executable, "-P", "-c", EXPLAIN, *(path.resolve() for path in TOOLS)]
    done = subprocess.run(list(map(str, command)), cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(TOOLS)


def words_of(text, name):
    """The words of a usage line, whose line breaks depend on the program's name."""
    return text.removeprefix("usage: ").removeprefix(name).split()


@pytest.mark.parametrize("file", [Path("train.py"), *(tool for tool in TOOLS if tool.stem in PROGRAMS)], ids=str)
def test_a_file_of_the_checkout_is_the_program_of_its_name(file):
    ours, same = run_program(file, "--help"), run_program(file.stem, "--help")
    assert ours.returncode == same.returncode == 0
    usage, _, explanation = same.stdout.partition("\n\n")
    assert usage.startswith(f"usage: vssl {file.stem} ") and f"  vssl {file.stem} " in explanation
    assert ours.stdout.partition("\n\n")[2] == explanation
    assert words_of(ours.stdout.partition("\n\n")[0], file.name) == words_of(usage, f"vssl {file.stem}")


def test_vssl_lists_every_program_by_the_first_line_of_its_help():
    done = run_program("--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: vssl ")
    for name in PROGRAMS:
        first = ast.get_docstring(ast.parse(Path(f"vssl/commands/{name}.py").read_text())).splitlines()[0]
        assert f"\n  {name:<12}{first}\n" in done.stdout
    alone = run_program()
    assert (alone.returncode, alone.stdout, alone.stderr) == (2, "", done.stdout)


def test_vssl_knows_its_version():
    assert run_program("--version").stdout == f"vssl {__version__}\n"


def test_an_unknown_program_names_the_nearest():
    done = run_program("trian", "-c", "configs/demo.yaml")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: no program 'trian'; did you mean 'train'? vssl --help lists all\n"


def test_python_m_vssl_is_the_command():
    """In a Python of its own; it imports no more than the list of programs needs."""
    program = [sys.executable, "-X", "importtime", "-m", "vssl"]
    done = subprocess.run([*program, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"vssl {__version__}\n") and " torch\n" not in done.stderr
    wrong = subprocess.run([*program[:1], "-m", "vssl", "plot"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("usage: python -m vssl plot ") and "python -m vssl plot: error: " in wrong.stderr


def test_an_exported_checkpoint_is_the_runs_backbone(finished, tmp_path):
    newest = sorted((finished / "checkpoints").iterdir())[-1]
    for source in (finished, newest):
        assert run_program("tools/export.py", source, "--out", tmp_path / "b.safetensors").returncode == 0
        assert (tmp_path / "b.safetensors").read_bytes() == (finished / "backbone.safetensors").read_bytes()


def test_curves_are_drawn(finished, tmp_path):
    assert run_program("tools/plot.py", finished, "--out", tmp_path / "p.png").returncode == 0
    assert Image.open(tmp_path / "p.png").width > 500


def test_print_config_shows_every_null_resolved():
    result = run_program("train.py", "-c", "configs/in100_fast.yaml", "method.name=byol", "--print-config")
    assert result.returncode == 0 and "  lr: 0.5\n" in result.stdout and "predictor_hidden: 8192" in result.stdout
