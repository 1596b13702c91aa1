"""The methods, compared as a user compares them."""

import json
import statistics

import pytest
from PIL import Image

from support.programs import run_program

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


TWO_ARMS = ("--arm", "cosine method.name=vssl", "--arm", "byol method.name=byol", "--seeds", 0, 1)


@pytest.fixture(scope="module")
def compare(digits):
    """``compare(folder, *arguments)``: the program on the digits, its runs in ``folder / "work"``."""

    def call(folder, *arguments, overrides=SMALL):
        program = ["tools/compare.py", "methods", "-c", "configs/demo.yaml", f"data.dir={digits}"]
        return run_program(*program, *overrides, "--work", folder / "work", *arguments)

    return call


@pytest.fixture(scope="module")
def compared(compare, tmp_path_factory):
    """The folder of a comparison of two arms, each with two seeds, and what the program printed."""
    folder = tmp_path_factory.mktemp("compared")
    files = ("--json", folder / "m.json", "--plot", folder / "m.png")
    done = compare(folder, *TWO_ARMS, *files, "--repeats", 2, "--seconds", 0.05)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_arms_share_all_keys_except_their_own_and_are_averaged_over_seeds(compared):
    folder, printed = compared
    assert "cosine - byol, paired by seed, points: kNN " in printed

    report = json.loads((folder / "m.json").read_text())
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
    ours, theirs = ([run["knn_top1"] for run in arm["runs"]] for arm in report["arms"].values())
    apart = [our - their for our, their in zip(ours, theirs, strict=True)]
    ahead = report["arms"]["byol"]["first_arm_ahead"]["knn_top1"]
    assert ahead["mean"] == pytest.approx(statistics.fmean(apart))
    assert ahead["standard_error"] == pytest.approx(statistics.stdev(apart) / 2**0.5)
    first, second = (arm["config"] for arm in report["arms"].values())
    shared = set(first["method"]) & set(second["method"]) - {"name", "predictor"}  # each method has its own default
    assert all(first["method"][key] == second["method"][key] for key in shared)
    assert {**first, "method": None} == {**second, "method": None}
    assert Image.open(folder / "m.png").width > 500


def test_finished_runs_are_kept_and_those_of_another_config_refused(compare, compared):
    folder, _ = compared
    weights = {path: path.stat().st_mtime_ns for path in (folder / "work").glob("*/*/backbone.safetensors")}
    assert len(weights) == 4
    assert compare(folder, *TWO_ARMS, "--repeats", 0).returncode == 0
    assert all(path.stat().st_mtime_ns == before for path, before in weights.items())
    other = compare(folder, *TWO_ARMS, "--repeats", 0, overrides=[*SMALL, "train.epochs=2"])
    assert other.returncode == 2
    assert other.stderr.count("\n") == 1 and "cosine/seed0 holds a run of another config" in other.stderr


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
    done = compare(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr
    assert not (tmp_path / "work").exists()
