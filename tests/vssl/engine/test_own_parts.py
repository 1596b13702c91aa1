"""Methods and networks of the user's own code: configured, trained, resumed and loaded as ours are."""

import sys

import pytest
import torch

import vssl
from pipelines.errors import UserError
from support.training import everything, finish, small_config
from vssl.engine.trainer import Trainer
from vssl.models.backbones import build_backbone
from vssl.models.config import ModelConfig

SOURCE = """
from dataclasses import dataclass
from torch import nn
from pipelines.options import option
from vssl.methods.vssl import VSSL, VSSLOptions

@dataclass(frozen=True)
class Options(VSSLOptions):
    bottleneck: int = option(4, "a key of this method alone", low=1)

class Mine(VSSL):
    Options = Options

def network(image_size):
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * (image_size - 2) ** 2, 12))

class Fixed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 5, 8), nn.Flatten())

def number():
    return 3

def planes():
    return nn.Conv2d(3, 6, 3)
"""


@pytest.fixture(autouse=True)
def own_code(tmp_path, monkeypatch):
    (tmp_path / "own_code.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_code", None)


KEYS = ("method.name=own_code:Mine", "method.bottleneck=8", "model.backbone=own_code:network")


def test_a_run_of_own_parts_resumes_and_loads(digits, tmp_path):
    keys = (*KEYS, "checkpoint.every_steps=10", "checkpoint.keep=9")
    whole = Trainer(small_config(digits, tmp_path / "whole", *keys))
    whole.fit()
    part = Trainer(
        small_config(digits, tmp_path / "part", *keys), str(tmp_path / "whole/checkpoints/step-000000010.pt")
    )
    part.fit()
    assert type(whole.train_step.method).__name__ == "Mine" and whole.config.method.bottleneck == 8
    assert all(torch.equal(a, b) for a, b in zip(everything(whole), everything(part), strict=True))
    model = vssl.load(tmp_path / "whole", device="cpu")
    assert model.config.method.name == "own_code:Mine" and model.embed(torch.zeros(2, 3, 8, 8)).mean.shape == (2, 8)
    exported = vssl.load(finish(small_config(digits, tmp_path / "more", *keys)) / "backbone.safetensors", device="cpu")
    assert exported.features(torch.zeros(2, 3, 8, 8)).shape == (2, 12)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("method.bottlenek=8", "unknown config key 'method.bottlenek'; did you mean 'method.bottleneck'?"),
        ("method.bottleneck=0", "method.bottleneck must be at least 1, not 0"),
        ("method.variance_weight=1", "is an option of method.name=vicreg, not of own_code:Mine"),
        ("method.name=own_code:Fixed", "Fixed is not a subclass of vssl.methods.base.Method"),
        ("method.name=byol", "unknown config key 'method.bottleneck'"),
    ],
)
def test_the_keys_of_an_own_method_are_checked(key, message, tmp_path):
    with pytest.raises(UserError) as error:
        small_config("d", tmp_path, *KEYS, key)
    assert message in str(error.value)


@pytest.mark.parametrize(("name", "width"), [("network", 12), ("Fixed", 5)])
def test_an_own_network_is_a_function_or_a_class(name, width):
    backbone, found = build_backbone(ModelConfig(backbone=f"own_code:{name}"), 8)
    assert found == width and backbone(torch.zeros(2, 3, 8, 8)).shape == (2, width)


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("number", 8, "model.backbone=own_code:number must return a torch.nn.Module, not int"),
        ("planes", 8, r"into features \[B, F\], not \[1, 6, 6, 6\]"),
        ("Fixed", 7, "model.backbone=own_code:Fixed does not take images of 7 pixels"),
    ],
)
def test_what_is_no_network_is_one_clear_line(name, side, message):
    with pytest.raises(UserError, match=message):
        build_backbone(ModelConfig(backbone=f"own_code:{name}"), side)
