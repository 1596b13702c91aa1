"""Weights from files of torchvision, timm, other programs and this one: what is loaded, left out and refused."""

import argparse
import os

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from pipelines.errors import UserError
from support.training import finish
from vssl.engine.config import resolve
from vssl.methods import build_method
from vssl.models.backbones import build_backbone
from vssl.models.config import ModelConfig
from vssl.models.weights import load_backbone_weights


def network(name="resnet8", stem="auto", image_size=32):
    return build_backbone(ModelConfig(backbone=name, stem=stem), image_size)[0]


def filled(state, value=0.5):
    """A state dict of the same shapes."""
    return {key: torch.full_like(weight, value) for key, weight in state.items()}


def prefixed(prefix, state):
    return {prefix + key: weight for key, weight in state.items()}


def assert_loaded(backbone, value=0.5):
    assert all((weight == value).all() for weight in backbone.state_dict().values() if weight.is_floating_point())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_torchvisions_weights_are_loaded_without_the_classifier(tmp_path, suffix):
    source = torchvision.models.resnet18(weights=None).eval()
    path = tmp_path / f"resnet18.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(source.state_dict(), path)
    backbone = network("resnet18", "imagenet", 224).eval()
    said = load_backbone_weights(backbone, path)
    assert said.startswith(f"{path}: ignored: ") and set(said.split(": ")[2].split(", ")) == {"fc.weight", "fc.bias"}
    source.fc, images = nn.Identity(), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(backbone(images), source(images))


@pytest.mark.parametrize(
    ("name", "head"),
    [("test_resnet", "fc"), ("test_convnext", "head.fc"), ("test_vit", "head"), ("test_efficientnet", "classifier")],
)
def test_timms_weights_are_loaded_without_the_networks_own_classifier(tmp_path, name, head):
    timm = pytest.importorskip("timm")
    size = {"img_size": 32} if "vit" in name else {}
    source = timm.create_model(name, **size).eval()
    torch.save(source.state_dict(), tmp_path / "w.bin")
    backbone = network(f"timm:{name}").eval()
    said = load_backbone_weights(backbone, tmp_path / "w.bin")
    assert said.endswith(f"ignored: {head}.weight, {head}.bias")
    source.reset_classifier(0)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(backbone(images), source(images))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": prefixed("module.", state), "epoch": 3, "best": 0.5},
        lambda state: {"model": prefixed("backbone.", state), "args": argparse.Namespace(lr=1.0)},
        lambda state: {"model_state": prefixed("module.encoder.", state)},
        lambda state: {"model": {"state_dict": state}, "optimizer": {"state": {}}},
        lambda state: prefixed("module.", state | {"fc.weight": torch.zeros(2, 64)}),
        lambda state: prefixed("encoder.", state) | {"fc.weight": torch.zeros(2, 64)},
        lambda state: {key: value for key, value in state.items() if "num_batches_tracked" not in key},
    ],
)
def test_checkpoints_of_other_programs(tmp_path, wrap):
    torch.save(wrap(filled(network().state_dict())), tmp_path / "w.pth")
    backbone = network()
    load_backbone_weights(backbone, tmp_path / "w.pth")
    assert_loaded(backbone)


def test_a_file_of_an_old_version_of_torch(tmp_path):
    torch.save(filled(network().state_dict()), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    backbone = network()
    assert load_backbone_weights(backbone, tmp_path / "w.pth") == ""
    assert_loaded(backbone)


def changed(state, remove=(), **add):
    return {key: value for key, value in state.items() if key not in remove} | add


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: changed(s, ["conv1.weight"]), "missing: conv1.weight$"),
        (lambda s: changed(s, ["bn1.running_mean"]), "missing: bn1.running_mean$"),
        (lambda s: changed(s, list(s)[1:]), r"missing: bn1.weight, bn1.bias, bn1.running_mean and \d+ more$"),
        (lambda s: s | {"projector.weight": torch.zeros(1)}, "unexpected: projector.weight$"),
        (lambda s: s | {"bn1.weight": torch.zeros(9)}, r"shape: bn1.weight is \[9\], not \[16\]$"),
        (
            lambda s: s | {"conv1.weight": torch.zeros(16, 3, 5, 5)},
            r"shape: conv1.weight is \[16, 3, 5, 5\], not \[16, 3, 3, 3\]$",
        ),
        # A prefix is not removed from some of the keys.
        (
            lambda s: prefixed("backbone.", s) | {"head.0.bias": torch.zeros(1)},
            "missing: conv1.weight, .*; unexpected: ba",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_and_changes_nothing(tmp_path, change, message):
    torch.save(change(filled(network().state_dict())), tmp_path / "w.pth")
    backbone = network()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(UserError, match=rf"w\.pth does not fit model\.backbone: {message}") as raised:
        load_backbone_weights(backbone, tmp_path / "w.pth")
    assert "\n" not in str(raised.value)
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize(("given", "own"), [("imagenet", "cifar"), ("cifar", "imagenet")])
def test_the_other_stem_names_the_key_to_set(tmp_path, given, own):
    torch.save(network("resnet18", given).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=f"the stem for {given} and the network that for {own}: set model.stem={given}"):
        load_backbone_weights(network("resnet18", own), tmp_path / "w.pth")


def test_position_embeddings_of_another_size_name_the_key_to_set(tmp_path):
    pytest.importorskip("timm")
    torch.save(network("timm:test_vit", image_size=64).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"pos_embed is .*; position embeddings depend on data\.image_size"):
        load_backbone_weights(network("timm:test_vit"), tmp_path / "w.pth")


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


def test_files_that_cannot_be_read_are_one_line_and_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": filled(network().state_dict()), "args": Bomb()}, "bomb.pth")
    torch.save(nn.Linear(2, 2), "network.pth")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save({"w": torch.full((1000,), 1.2345)}, "damaged.pth")
    content = bytearray((tmp_path / "damaged.pth").read_bytes())
    content[content.index(torch.tensor(1.2345).numpy().tobytes()) + 400] ^= 1
    (tmp_path / "damaged.pth").write_bytes(content)
    (tmp_path / "half.pth").write_bytes((tmp_path / "network.pth").read_bytes()[:500])
    torch.save({"epoch": 1, "best": 0.5, "arch": "x", "lr": 1.0}, "empty.pth")
    torch.save([torch.zeros(1)], "list.pth")
    (tmp_path / "run").mkdir()
    for path, message in [
        ("bomb.pth", "bomb.pth: it holds posix.system, not tensors alone, and no code in a file is executed"),
        ("network.pth", "cannot read the weights network.pth: it holds torch.nn.modules.linear.Linear"),
        ("text.pth", "text.pth: not a whole file of safetensors or torch.save"),
        ("text.safetensors", "text.safetensors: not a whole file of safetensors or torch.save"),
        ("damaged.pth", "damaged.pth: the checksum of .* does not match"),
        ("half.pth", "half.pth: not a whole file"),
        ("empty.pth", "empty.pth holds no state dict, only epoch, best, arch and 1 more"),
        ("list.pth", "list.pth holds no state dict$"),
        ("absent.safetensors", "cannot read the weights absent.safetensors: No such file"),
        ("absent.pth", "cannot read the weights absent.pth: No such file or directory"),
        ("run", "cannot read the weights run/backbone.safetensors: No such file"),
    ]:
        with pytest.raises(UserError, match=message) as raised:
            load_backbone_weights(network(), path)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "exploded").exists()


def test_a_run_starts_from_another_runs_directory_export_or_checkpoint(config, tmp_path):
    run = finish(config("train.epochs=1"))
    (checkpoint,) = (run / "checkpoints").iterdir()
    expected = torch.load(checkpoint, weights_only=True)["method"]
    for weights in (run, run / "backbone.safetensors", checkpoint):
        settings = resolve(config(f"model.weights={weights}"))
        backbone = build_method(settings.method, settings.model, 8).student.backbone
        for key, value in backbone.state_dict().items():
            assert torch.equal(value, expected[f"student.backbone.{key}"])


def test_what_is_left_out_is_said(tmp_path, config, capsys):
    torch.save(filled(network().state_dict()) | {"fc.bias": torch.zeros(2)}, tmp_path / "w.pth")
    settings = resolve(config(f"model.weights={tmp_path / 'w.pth'}", "model.sync_batchnorm=false"))
    build_method(settings.method, settings.model, 8)
    assert capsys.readouterr().err == f"{tmp_path / 'w.pth'}: ignored: fc.bias\n"
