"""torchrun restarts a process that dies (``--max-restarts``), and the run continues automatically."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vssl.config import to_yaml

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

STEPS = 40


def lines(run_dir):
    """What has been written to metrics.jsonl; its last line may be incomplete."""
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def worker(torchrun, rank):
    """The child of torchrun that has this rank."""
    for child in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise LookupError(f"torchrun has no child of rank {rank}")


def test_a_run_goes_on_by_itself_when_a_process_is_killed(config, tmp_path):
    """The first process, which alone reads and writes the run's directory."""
    path, run = tmp_path / "config.yaml", tmp_path / "run"
    path.write_text(to_yaml(config(f"train.epochs={STEPS // 10}", "train.log_every=1", "checkpoint.every_steps=5")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    process = subprocess.Popen(
        [*command, "train.py", "-c", path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        deadline = time.monotonic() + 600
        while not any(line.get("step", 0) >= 12 and "loss" in line for line in lines(run)):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.01)
        os.kill(worker(process.pid, 0), signal.SIGKILL)
        output, _ = process.communicate(timeout=600)
    finally:
        process.terminate()  # torchrun ends its processes too
        process.wait()
    assert process.returncode == 0, output.decode()

    written = lines(run)
    (place,) = (number for number, line in enumerate(written) if "resumed_from_step" in line)
    resumed_from = written[place]["resumed_from_step"]
    parts = written[:place], written[place:]
    before, after = ({line["step"]: line["loss"] for line in part if "loss" in line} for part in parts)
    assert 10 <= resumed_from <= max(before) < STEPS
    assert list(after) == list(range(resumed_from + 1, STEPS + 1))
    assert all(before[step] == after[step] for step in before.keys() & after.keys())
    assert output.decode().splitlines().count(str(run / "backbone.safetensors")) == 1
