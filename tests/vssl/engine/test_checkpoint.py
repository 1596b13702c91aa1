"""A checkpoint is saved completely or not at all; exports are reproducible and load elsewhere."""

import os
import pickle
import resource

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from pipelines.errors import UserError
from pipelines.files import write_atomically
from vssl.engine.checkpoint import Checkpoints, export_backbone, load_checkpoint
from vssl.methods import build_method
from vssl.methods.byol import BYOLOptions
from vssl.models.config import ModelConfig
from vssl.models.weights import backbone_weights

STATE = {"step": 1, "method": {"w": torch.ones(3)}}


def test_the_newest_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 20, 300):
        checkpoints.save(step, STATE | {"step": step})
    assert [p.name for p in checkpoints.paths()] == ["step-000000020.pt", "step-000000300.pt"]
    assert checkpoints.newest()["step"] == 300


def test_no_checkpoint_is_none(tmp_path):
    assert Checkpoints(tmp_path / "absent", keep=2).newest() is None


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")

    def full(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*x: No space left on device"):
        write_atomically(path, full)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x"]


def test_a_changed_byte_in_a_tensor_is_found_and_the_one_before_taken(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, {"step": step, "method": {"w": torch.full((1000,), 1.2345)}})
    newest = checkpoints.paths()[-1]
    content = bytearray(newest.read_bytes())
    content[content.index(torch.tensor(1.2345).numpy().tobytes()) + 400] ^= 1
    newest.write_bytes(content)
    with pytest.raises(UserError, match=r"000002\.pt is not a whole checkpoint: the checksum of .* does not match"):
        load_checkpoint(newest)
    assert checkpoints.newest()["step"] == 1
    assert "passed over" in capsys.readouterr().err
    checkpoints.paths()[0].write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 2 checkpoints in .* is whole"):
        checkpoints.newest()


def test_a_full_disk_is_one_line_and_keeps_the_last_good_one(tmp_path):
    """A file size limit simulates the full disk. It can only be lowered, so it is set in a separate process."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    state = {"step": 1, "method": {"w": torch.randn(100_000)}}
    checkpoints.save(1, state)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        said = []
        for write in (lambda: checkpoints.save(2, state), lambda: export_backbone(state["method"], tmp_path / "b")):
            try:
                write()
            except UserError as error:
                said.append(str(error))
        os._exit(0 if len(said) == 2 and all("cannot write" in line and "\n" not in line for line in said) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert os.listdir(tmp_path) == ["step-000000001.pt"] and checkpoints.newest()["step"] == 1


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
    options = BYOLOptions(projector_hidden=8, predictor_hidden=8, latent=4)
    method = build_method(options, ModelConfig(stem="imagenet"), 224).to(memory_format=torch.channels_last)
    for name in ("a", "b"):
        export_backbone(backbone_weights(method.state_dict()), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    reference = torchvision.models.resnet18(weights=None)
    reference.fc = nn.Identity()
    reference.load_state_dict(load_file(tmp_path / "a"), strict=True)


def test_saving_by_time(config, monkeypatch):
    from vssl.engine import trainer

    settings = config("checkpoint.every_minutes=1", "train.epochs=1", "checkpoint.keep=100")
    steps = []
    monkeypatch.setattr(trainer.time, "monotonic", lambda: 25.0 * len(steps))  # a step takes 25 seconds
    run = trainer.Trainer(settings, on_step=steps.append)
    run.fit()
    saved = [int(path.stem.split("-")[1]) for path in run.directory.checkpoints.paths()]
    assert saved == [3, 6, 9, 10]  # after more than a minute, and at the end


def test_what_a_killed_process_left_half_written_is_removed(config, tmp_path):
    from vssl.engine.trainer import Trainer

    leftover = tmp_path / "run" / "checkpoints" / ".step-000000005.pt.tmp-123"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    trainer = Trainer(config("train.epochs=1"), resume="auto")
    assert not leftover.exists()
    trainer.fit()
    first, second, *_ = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert first == '{"step": 1}' and second.startswith('{"step"') and second.endswith("}")
