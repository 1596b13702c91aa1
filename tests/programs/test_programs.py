"""The small programs, run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from support.programs import run_program

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
