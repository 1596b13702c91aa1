"""The methods, compared as a user compares them."""

import json
import statistics

import pytest
from PIL import Image
from programs import run_program

SMALL = (
    "data.limit=128",
    "data.batch_size=32",
    "data.image_size=8",
    "method.projector_hidden=16",
    "method.latent=8",
    "train.epochs=1",
    "train.compile=false",
    "train.device=cpu",
    "eval.every=1",
)


@pytest.fixture
def compare(digits, tmp_path):
    """``compare(*arguments)``: the program on the digits, its runs in ``tmp_path / "work"``."""

    def call(*arguments, overrides=SMALL):
        program = ["tools/compare.py", "methods", "-c", "configs/demo.yaml", f"data.dir={digits}"]
        return run_program(*program, *overrides, "--work", tmp_path / "work", *arguments)

    return call


def test_arms_share_all_keys_except_their_own_and_are_averaged_over_seeds(compare, tmp_path):
    arms = ("--arm", "cosine method.name=vssl", "--arm", "byol method.name=byol", "--seeds", 0, 1)
    files = ("--json", tmp_path / "m.json", "--plot", tmp_path / "m.png", "--repeats", 2, "--seconds", 0.05)
    done = compare(*arms, *files)
    assert done.returncode == 0, done.stderr
    assert "kNN, cosine - byol: " in done.stdout

    report = json.loads((tmp_path / "m.json").read_text())
    assert list(report["arms"]) == ["cosine", "byol"]
    for name, arm in report["arms"].items():
        assert [run["seed"] for run in arm["runs"]] == [0, 1]
        for key in ("knn_top1", "online_top1", "linear_top1"):
            values = [run[key] for run in arm["runs"]]
            assert arm["mean"][key] == pytest.approx(statistics.fmean(values))
            assert arm["standard_error"][key] == pytest.approx(statistics.stdev(values) / 2**0.5)
        pace = arm["pace"]
        assert 0 < pace["low"] <= pace["images_per_second"] <= pace["high"] and pace["repeats"] == 2
        assert pace["memory"]["host_bytes"] > 1e8
        assert ("logvar_student" in arm["runs"][0]) == (name == "cosine")
    first, second = (arm["config"] for arm in report["arms"].values())
    shared = set(first["method"]) & set(second["method"]) - {"name"}
    assert all(first["method"][key] == second["method"][key] for key in shared)
    assert {**first, "method": None} == {**second, "method": None}
    assert Image.open(tmp_path / "m.png").width > 500


def test_finished_runs_are_kept_and_those_of_another_config_refused(compare, tmp_path):
    arguments = ("--arm", "plain", "--repeats", 0)
    assert compare(*arguments).returncode == 0
    weights = tmp_path / "work" / "plain" / "seed0" / "backbone.safetensors"
    before = weights.stat().st_mtime_ns
    again = compare(*arguments)
    assert again.returncode == 0 and weights.stat().st_mtime_ns == before
    other = compare(*arguments, overrides=[*SMALL, "train.epochs=2"])
    assert other.returncode == 2
    assert other.stderr.count("\n") == 1 and "plain/seed0 holds a run of another config" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arm", "method.name=byol"], "--arm 'method.name=byol' must have the form 'NAME key=value ...'"),
        (["--arm", "a", "--arm", "a train.seed=1"], "every --arm needs a name of its own"),
        (["--arm", "a", "--json", "README.md/m.json"], "cannot write README.md/m.json: Not a directory"),
        (["--arm", "a", "--arm", "b method.nome=byol"], "unknown config key 'method.nome'"),
    ],
)
def test_a_mistake_costs_no_training(compare, tmp_path, arguments, message):
    done = compare(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr
    assert not (tmp_path / "work").exists()
