"""torchrun restarts a process that dies (``--max-restarts``), and the run continues automatically."""

import pytest

from support.processes import kill_rank, torchrun, wait_for_step, written
from vssl.config import to_yaml

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

STEPS = 40


def test_a_run_goes_on_by_itself_when_a_process_is_killed(config, tmp_path):
    """The first process, which alone reads and writes the run's directory."""
    path, run = tmp_path / "config.yaml", tmp_path / "run"
    path.write_text(to_yaml(config(f"train.epochs={STEPS // 10}", "train.log_every=1", "checkpoint.every_steps=5")))
    process = torchrun(2, "-c", path)
    try:
        wait_for_step(process, run, 12)
        kill_rank(process, 0)
        output, _ = process.communicate(timeout=600)
    finally:
        process.terminate()  # torchrun ends its processes too
        process.wait()
    assert process.returncode == 0, output

    lines = written(run)
    (place,) = (number for number, line in enumerate(lines) if "resumed_from_step" in line)
    resumed_from = lines[place]["resumed_from_step"]
    parts = lines[:place], lines[place:]
    before, after = ({line["step"]: line["loss"] for line in part if "loss" in line} for part in parts)
    assert 10 <= resumed_from <= max(before) < STEPS
    assert list(after) == list(range(resumed_from + 1, STEPS + 1))
    assert all(before[step] == after[step] for step in before.keys() & after.keys())
    assert output.splitlines().count(str(run / "backbone.safetensors")) == 1
