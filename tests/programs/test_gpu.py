"""What the program behind ``make gpu`` does without a GPU; there ``make gpu SMOKE=1`` tries its steps."""

import time

import pytest
import torch

from pipelines.errors import UserError
from pipelines.formats.packed import open_packed
from support.programs import run_program
from tools.bench import gpu
from tools.bench.noise import pack_noise_if_absent
from vssl.methods import COMPARED


def run(*arguments):
    return run_program("tools/gpu.py", *arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_measures_nothing():
    done = run("throughput-32")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no GPU" in done.stderr and "SMOKE=1" in done.stderr


def test_an_unknown_step_is_named_with_the_existing_ones():
    done = run("throughput-33")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no step 'throughput-33'")
    for step in ("tests", "throughput-32", "step-224", *(f"train-{method}" for method in COMPARED)):
        assert step in done.stderr


def test_nothing_measured_is_an_error_with_the_reasons(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "SMOKE", tmp_path)
    monkeypatch.setattr(gpu, "prepare", lambda smoke: None)  # takes seconds, and no step starts
    for folder in ("resident", "noise-32"):
        (tmp_path / folder).mkdir()
    done = run("--smoke", "train-vssl", "throughput-32", "--minutes", "0.001")
    assert done.returncode == 2
    assert "== train-vssl: left out, run throughput-32 first" in done.stdout
    assert "== throughput-32: left out, it may take 300 s and 0 s are left: start again" in done.stdout
    assert done.stderr == "error: nothing was measured: every step was left out, for the reasons above\n"


def test_a_step_that_takes_too_long_ends_with_all_its_processes(tmp_path):
    mark = tmp_path / "mark"
    inner = f"import time; open({str(mark)!r}, 'w').close(); time.sleep(1.5); open({str(mark)!r}, 'w').write('late')"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    with pytest.raises(gpu.StepFailed, match="took longer than 1 s"):
        gpu.run_step(gpu.Step("long", (("-c", outer),), seconds=1.0))
    time.sleep(2.0)
    assert mark.read_text() == ""


def test_noise_is_a_packed_data_set_that_is_made_once(tmp_path):
    out = tmp_path / "noise"
    pack_noise_if_absent(out, 5, 6)
    packed = open_packed(out, verify=True)
    split = packed.splits["train"]
    assert (split.count, split.max_height, split.max_width) == (5, 6, 6)
    before = (out / "manifest.json").stat().st_mtime_ns
    pack_noise_if_absent(out, 5, 6)
    assert (out / "manifest.json").stat().st_mtime_ns == before

    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^cannot pack noise into .*File exists"):
        pack_noise_if_absent(tmp_path / "file" / "noise", 5, 6)
