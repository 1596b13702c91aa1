"""Our loaders and others', compared as a user compares them; no test depends on which is faster."""

import functools
import importlib.util
import json
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from support.programs import run_program
from vssl.commands.arguments import installed

LEAST = ["--images", "20", "--image-size", "32", "--batch-size", "8", "--workers", "1", "--repeats", "2"]


def compare(*arguments: object) -> subprocess.CompletedProcess:
    return run_program("tools/compare.py", "loaders", *arguments)


@pytest.fixture
def uncompiled(monkeypatch):
    """Inductor would compile for minutes what these tests do not look at."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


@pytest.fixture
def photographs(tmp_path):
    datasets = pytest.importorskip("sklearn.datasets")
    for number, pixels in enumerate(datasets.load_sample_images().images * 2):
        (tmp_path / "source" / str(number)).mkdir(parents=True)
        Image.fromarray(np.roll(pixels, 50 * number, axis=1)).save(tmp_path / "source" / str(number) / "a.JPEG")
    return tmp_path / "source"


def test_loaders_are_compared_on_the_same_photographs(photographs, tmp_path):
    names = [
        "vssl torch",
        "vssl dali",
        "DALI, the same operators bare",
        "torchvision, tensors",
        "lightly, BYOLTransform",
    ]
    needs = {"vssl torch": "ffcv", "lightly, BYOLTransform": "lightly"} | dict.fromkeys(names[1:3], "nvidia.dali")
    present = [name for name in names if name not in needs or installed(needs[name])]
    files = ["--json", tmp_path / "figures.json", "--plot", tmp_path / "chart.png", "--work", tmp_path / "work"]
    done = compare("--source", photographs, "--max-resolution", 100, *LEAST, *files, "--only", *names)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("left out: ") == len(names) - len(present)

    report = json.loads((tmp_path / "figures.json").read_text())
    assert list(report["loaders"]) == present
    for figures in report["loaders"].values():
        assert 0 < figures["low"] <= figures["images_per_second"] <= figures["high"] and figures["repeats"] == 2
    if "vssl dali" in present:
        assert list(report["ratios"]) == ["vssl dali / DALI, the same operators bare"]
    assert report["images"]["count"] == 20 and report["environment"]["versions"]["torch"]
    assert Image.open(tmp_path / "chart.png").width > 500

    images = sorted((tmp_path / "work").glob("*/images/*.jpg"))
    assert len(images) == 20 and images[4].read_bytes() == images[0].read_bytes() != images[1].read_bytes()
    assert max(Image.open(images[0]).size) == 100


def test_every_loader_keeps_small_images_in_memory(digits, tmp_path, uncompiled):
    line = ["--packed", digits, "--images", 20, "--batch-size", 8, "--workers", 1, "--repeats", 2]
    done = compare(*line, "--json", tmp_path / "figures.json", "--plot", tmp_path / "chart.png")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "figures.json").read_text())
    peers = ["torchvision, BYOL's recipe"] + ["lightly, BYOLTransform"] * bool(importlib.util.find_spec("lightly"))
    assert list(report["loaders"]) == ["vssl resident, augmented", *peers]
    assert set(report["ratios"]) == {f"vssl resident, augmented / {peer}" for peer in peers}
    assert report["images"] == {"count": 20, "side": 8, "dataset": "digits"}
    assert report["loading"]["image_size"] == 8
    assert Image.open(tmp_path / "chart.png").width > 500


def test_our_augmented_candidates_finish_an_epoch(photographs, tmp_path, uncompiled):
    pytest.importorskip("ffcv")
    line = ["--source", photographs, "--max-resolution", 100, *LEAST, "--work", tmp_path / "work"]
    done = compare(*line, "--only", "vssl ffcv, augmented", "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "figures.json").read_text())["loaders"]["vssl ffcv, augmented"]["low"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--packed", "configs", "--only", "vssl ffcv"], "'vssl ffcv' reads --source, not --packed"),
        (["--packed", "configs"], "configs"),
        (["--source", "configs"], "configs: no .jpg or .jpeg files there"),
        (["--source", "configs", "--json", "docs"], "cannot write docs: it is a directory"),
        (["--source", "configs", "--plot", "README.md/p.png"], "cannot write README.md/p.png: Not a directory"),
        (["--source", "configs", "--only", "mine"], "no loader 'mine'; there are vssl ffcv; vssl dali"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, message):
    done = compare(*arguments, "--work", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr
