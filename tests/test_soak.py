"""The soak's short version: a few of each. ``make soak`` does all."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_soak_finds_no_failures():
    command = [sys.executable, "tools/soak.py", "--kills=5", "--data=20", "--configs=16", "--epochs=6"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("0 failures\n")
    assert "1 ended with the same weights" in done.stdout and "0 changed unnoticed" in done.stdout
