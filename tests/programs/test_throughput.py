"""The throughput program: what it writes and refuses."""

import dataclasses
import json

import pytest

from support.programs import run_program
from vssl.config import to_yaml


def test_the_program_writes_every_figure(config, tmp_path):
    settings = config("data.batch_size=64")
    overrides = [
        f"{section}.{key}={json.dumps(value)}"
        for section, values in dataclasses.asdict(settings).items()
        for key, value in values.items()
        if value is not None
    ]
    out, plot, trace = (tmp_path / name for name in ("t.json", "t.png", "t.trace"))
    command = ["tools/throughput.py", "-c", "configs/demo.yaml", *overrides]
    command += ["--repeats", "2", "--seconds", "0.02", "--json", out, "--plot", plot, "--trace", trace]
    pytest.importorskip("matplotlib")
    done = run_program(*command)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    # Resident data on a CPU: nothing to decode, nothing to copy.
    assert list(report["stages"]) == ["load", "augment", "step", "end_to_end"]
    for stage in report["stages"].values():
        assert 0 < stage["low"] <= stage["images_per_second"] <= stage["high"]
        assert stage["repeats"] == 2
        assert 63_999 / stage["high"] <= stage["milliseconds"] <= 64_001 / stage["low"]
    assert report["bottleneck"] in report["stages"]
    assert report["bottleneck"] in report["advice"]
    assert report["advice"] in done.stdout
    end_to_end = report["stages"]["end_to_end"]["images_per_second"]
    assert report["floor_fraction"] == pytest.approx(end_to_end / min(report["floors"].values()))
    assert set(report["step_milliseconds"]) == {
        "forward",
        "backward",
        "network",
        "optimizer_and_ema",
    }
    step, update = report["stages"]["step"]["milliseconds"], report["step_milliseconds"]["optimizer_and_ema"]
    assert report["update_share"] == pytest.approx(update / step)
    assert report["config"]["data"]["batch_size"] == 64
    assert report["environment"]["hardware"]["cores"] >= 1
    assert "tools/throughput.py" in report["command"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert json.loads(trace.read_text())["traceEvents"]
    assert not (tmp_path / "run").exists()  # measuring is no run


def test_one_process_measures_what_several_exchange(config, tmp_path):
    (tmp_path / "c.yaml").write_text(to_yaml(config()))
    command = ["-c", tmp_path / "c.yaml", "--exchange", "--repeats", "1", "--seconds", "0.01", "--json", tmp_path / "t"]
    done = run_program("tools/throughput.py", *command)
    assert done.returncode == 0, done.stderr
    assert "1 process: network" in done.stdout
    shared = json.loads((tmp_path / "t").read_text())["processes"]
    assert shared["count"] == 1 and shared["statistics_exchanges"] > 0 and shared["all_reduce_milliseconds"] > 0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("data.dir=/nonexistent", "/nonexistent"),
        ("--json=docs", "cannot write docs: it is a directory"),
        ("--plot=README.md/p.png", "cannot write README.md/p.png: Not a directory"),
        ("--trace=README.md/t", "cannot write README.md/t: Not a directory"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(argument, message):
    done = run_program("tools/throughput.py", "-c", "configs/demo.yaml", argument)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
