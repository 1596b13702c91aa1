"""What the program behind ``make gpu`` does without a GPU; there ``make gpu SMOKE=1`` tries its steps."""

import pytest
import torch
from programs import run_program

from vssl.methods import COMPARED


def run(*arguments):
    return run_program("tools/gpu.py", *arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_measures_nothing():
    done = run("throughput-cifar10")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no GPU" in done.stderr and "SMOKE=1" in done.stderr


def test_an_unknown_step_is_named_with_the_existing_ones():
    done = run("throughput-cifar11")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no step 'throughput-cifar11'")
    for step in ("tests", "throughput-cifar10", "step-224", *(f"train-{method}" for method in COMPARED)):
        assert step in done.stderr
