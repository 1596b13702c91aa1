"""A short version of the soak (``make soak`` runs it at length), and tests that its parts notice failures."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from pipelines.errors import UserError
from support.children import in_child
from support.mutation import mutate


@pytest.mark.slow
def test_soak_finds_no_failures():
    command = [
        sys.executable,
        "tests/system/soak.py",
        "--kills=2",
        "--restarts=1",
        "--data=5",
        "--configs=6",
        "--epochs=3",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("0 failures\n")
    assert "1 ended with the same weights" in done.stdout and "0 changed unnoticed" in done.stdout


def refuse():
    raise UserError("two\nlines")


@pytest.mark.parametrize(
    ("work", "answer"),
    [
        (lambda: "done", "done"),
        (refuse, "refused: two lines"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), f"signal {int(signal.SIGTERM)}"),
    ],
    ids=["done", "refused", "crashed"],
)
def test_a_childs_end_is_reported(work, answer):
    assert in_child(work) == answer


def test_a_childs_exception_is_reported_with_its_traceback():
    assert in_child(lambda: 1 / 0).startswith("exception: Traceback") and "ZeroDivisionError" in in_child(lambda: 1 / 0)


def test_a_child_is_killed_in_time():
    assert in_child(lambda: time.sleep(600), kill_after=0.05) == "killed"


def test_a_mutation_always_changes_something():
    content, rng = bytes(100), random.Random(0)
    assert all(mutate(content, rng) != content for _ in range(200))
