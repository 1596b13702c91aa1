"""Saving is whole or not at all; exports are reproducible and load elsewhere."""

import os
import pickle

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from pipelines.errors import UserError
from vssl.checkpoint import Checkpoints, backbone_weights, export_backbone, load_checkpoint, write_atomically
from vssl.models import ModelConfig, build_student

STATE = {"step": 1, "student": {"w": torch.ones(3)}}


def test_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 20, 300):
        checkpoints.save(step, STATE | {"step": step})
    assert [p.name for p in checkpoints.paths()] == ["step-000000020.pt", "step-000000300.pt"]
    assert checkpoints.newest()["step"] == 300


def test_no_checkpoint_is_none(tmp_path):
    assert Checkpoints(tmp_path / "absent", keep=2).newest() is None


def test_a_failed_write_keeps_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")

    def full(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*x: No space left on device"):
        write_atomically(path, full)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x"]


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


@pytest.mark.parametrize("content", [b"", b"rubbish", pickle.dumps({"step": 1}), pickle.dumps(Bomb())])
def test_foreign_files_are_refused_and_never_executed(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"c\.pt is not"):
        load_checkpoint(tmp_path / "c.pt")
    assert not (tmp_path / "exploded").exists()


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "absent.pt")


def test_an_export_is_the_same_bytes_again_and_loads_into_torchvision(tmp_path):
    config = ModelConfig(projector_hidden=8, predictor_hidden=8, latent=4, stem="imagenet")
    student = build_student(config, 224, method="vssl").to(memory_format=torch.channels_last)
    for name in ("a", "b"):
        export_backbone(backbone_weights(student), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    reference = torchvision.models.resnet18(weights=None)
    reference.fc = nn.Identity()
    reference.load_state_dict(load_file(tmp_path / "a"), strict=True)
