"""Our step and a plain one, compared as a user compares them."""

import json

import pytest
import torch

from support.programs import run_program

TINY = ("data.batch_size=4", "data.limit=16", "data.image_size=16", "method.projector_hidden=16")
TINY += ("method.latent=8", "train.compile=false", "train.device=cpu")


def compare(*arguments):
    return run_program("tools/compare_step.py", "-c", "configs/demo.yaml", *arguments)


def test_both_are_measured_on_the_same_batch(digits, tmp_path):
    out = tmp_path / "step.json"
    keys = (*TINY, "model.backbone=resnet18", f"data.dir={digits}")
    done = compare(*keys, "--repeats", 2, "--seconds", 0.05, "--json", out)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert list(report["candidates"]) == ["plain", "ours, eager", "ours, with augmentation"]
    for name, figures in report["candidates"].items():
        assert 0 < figures["low"] <= figures["images_per_second"] <= figures["high"] and figures["repeats"] == 2
        assert name in done.stdout
    assert report["candidates"]["plain"]["times_plain"] == 1
    assert report["environment"]["versions"]["torch"] and "tools/compare_step.py" in report["command"]


def test_an_eager_step_is_never_called_compiled(digits, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    done = compare(*TINY, "train.compile=true", "model.backbone=resnet18", f"data.dir={digits}")
    assert done.returncode == 2 and done.stderr.endswith(
        "torch.compile failed, the step runs eager: RuntimeError: no compiler here\n"
        "error: torch.compile failed, as reported above: the step would run eager\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.backbone=resnet8"], "model.backbone=resnet8 is not a torchvision model"),
        (["--json", "docs"], "cannot write docs: it is a directory"),
    ],
)
def test_a_mistake_is_one_line(digits, arguments, message):
    done = compare(*TINY, f"data.dir={digits}", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr
