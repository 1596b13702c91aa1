"""What a resumed run may change and what not, how it says so, and what is refused before a run starts."""

import dataclasses
import shutil

import pytest
import torch

from pipelines.convert import convert
from pipelines.errors import UserError
from pipelines.formats.packed import open_packed
from support.programs import run_program
from support.training import finish, kill_after, lines
from vssl.config import options_of, to_yaml
from vssl.engine.batch_size_checks import check_sizes
from vssl.engine.checkpoint import Checkpoints
from vssl.engine.config import Config, resolve
from vssl.engine.resume import find_changes, identify
from vssl.engine.trainer import Trainer
from vssl.runtime.processes import World

OTHER = "that would be another run; set it back, or start a new run in another run.dir"


@pytest.fixture
def compare(config, digits):
    """``compare(*overrides)``: what a run resumed with them changes, as text."""
    packed = open_packed(digits)
    saved = identify(resolve(config()), packed, 1)

    def changes(*overrides, packed=packed, processes=1):
        return list(map(str, find_changes(saved, resolve(config(*overrides)), packed, processes)))

    return changes


@pytest.fixture
def killed(config, tmp_path):
    """The directory of a run of 20 steps in two epochs, killed after step 12, where it was saved."""
    kill_after(config("checkpoint.every_steps=6"), steps=13)
    return tmp_path / "run"


def write(config, path):
    path.write_text(to_yaml(config))
    return path


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("data.batch_size=16", "data.batch_size was 32, now 16"),
        ("data.limit=0", "data.limit was 320, now 0"),
        ("data.drop_last=false", "data.drop_last was true, now false"),
        ("data.image_size=16", "data.image_size was 8, now 16"),
        ("augment.scale=[0.5, 1]", "augment.scale was [0.4, 1.0], now [0.5, 1.0]"),
        ("model.backbone=resnet18", "model.backbone was resnet8, now resnet18"),
        ("model.weights=w.safetensors", "model.weights was '', now w.safetensors"),
        ("method.name=byol", "method.name was vssl, now byol"),
        ("method.latent=16", "method.latent was 8, now 16"),
        ("method.beta=2", "method.beta was 1.0, now 2.0"),
        ("optim.name=lars", "optim.name was adamw, now lars"),
        ("optim.weight_decay=0.5", "optim.weight_decay was 0.0001, now 0.5"),
        ("train.seed=1", "train.seed was 0, now 1"),
        ("train.accumulate=2", "train.accumulate was 1, now 2"),
        ("eval.probe_lr=0", "eval.probe_lr was 0.1, now 0.0"),
    ],
)
def test_what_would_make_it_another_run_is_refused(compare, override, line):
    with pytest.raises(UserError) as error:
        compare(override)
    assert str(error.value) == f"{line}: {OTHER}"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.epochs=4", "train.epochs was 2, now 4"),
        ("train.compile=true", "train.compile was false, now true"),
        ("train.device=auto", "train.device was cpu, now auto"),
        ("train.log_every=1", "train.log_every was 4, now 1"),
        ("train.clip_grad=1", "train.clip_grad was 0.0, now 1.0"),
        ("optim.lr=0.01", "optim.lr was 0.002, now 0.01"),
        ("data.loader=torch", "data.loader was auto, now torch"),
        ("data.workers=2", "data.workers was 0, now 2"),
        ("eval.every=1", "eval.every was 0, now 1"),
        ("checkpoint.keep=5", "checkpoint.keep was 2, now 5"),
        ("run.dir=moved", "now moved"),
    ],
)
def test_what_may_change_is_reported(compare, override, line):
    (change,) = compare(override)
    assert change.endswith(line)
    assert compare() == []


def test_another_number_of_processes_is_reported(compare):
    assert compare(processes=2) == ["processes was 1, now 2"]


def test_a_copy_of_the_data_is_the_same_data_and_a_changed_file_is_not(compare, digits, tmp_path):
    shutil.copytree(digits, tmp_path / "copy")
    copy = open_packed(tmp_path / "copy")
    moved = f"data.dir={copy.dir}"
    assert compare(moved, packed=copy) == [f"data.dir was {digits}, now {copy.dir}"]
    val = copy.splits["val"]
    files = {name: dataclasses.replace(entry, sha256="0" * 64) for name, entry in val.files.items()}
    other = dataclasses.replace(copy, splits=copy.splits | {"val": dataclasses.replace(val, files=files)})
    with pytest.raises(UserError) as error:
        compare(moved, packed=other)
    old, new = (f"{packed.dir} (SHA-256 {packed.digest[:8]})" for packed in (open_packed(digits), other))
    assert str(error.value) == (
        f"data.dir was {old}, now {new}: that is other data; give the data of the checkpoint, or start a new run"
    )


def test_a_key_that_is_newer_than_the_checkpoint_had_its_default(config, digits):
    def compare(*overrides):
        saved = identify(resolve(config()), packed, 1)
        for key in ("method.beta", "method.tau", "augment.local_views"):
            section, name = key.split(".")
            del saved["config"][section][name]
        return list(map(str, find_changes(saved, resolve(config(*overrides)), packed, 1)))

    packed = open_packed(digits)
    assert compare() == []
    for key, old, new in (("method.beta", 1.0, 2.0), ("method.tau", 0.99, 0.5), ("augment.local_views", 0, 2)):
        with pytest.raises(UserError, match=f"{key} was {old}, now {new}: that would be another run"):
            compare(f"{key}={new}")


def test_a_former_run_whose_tau_was_not_scaled_goes_on_with_a_word(config, digits):
    packed, large = open_packed(digits), resolve(config("data.batch_size=512"))
    saved = identify(large, packed, 1)
    assert find_changes(saved, large, packed, 1) == []
    del saved["tau"]
    (change,) = find_changes(saved, large, packed, 1)
    assert str(change) == "the teacher's momentum at the start was 0.99, now 0.9801"


def test_every_key_of_a_config_is_compared():
    assert {key.split(".")[0] for key, _ in options_of(Config())} == {f.name for f in dataclasses.fields(Config)}


def test_a_longer_run_continues_from_the_run_directory_and_says_so(killed, config, tmp_path):
    before = (killed / "config.yaml").read_text()
    path = write(config("train.epochs=3", "checkpoint.every_steps=6"), tmp_path / "c.yaml")
    done = run_program("train.py", "-c", path, "--resume", killed)
    assert done.returncode == 0, done.stderr
    resumed = next(line for line in lines(killed) if "resumed_from_step" in line)
    assert resumed == {"step": 12, "epoch": 1.2, "resumed_from_step": 12, "changed": {"train.epochs": [2, 3]}}
    assert "resumed at step 12: train.epochs was 2, now 3\n" in done.stderr
    schedule = Trainer(config("train.epochs=3", f"run.dir={tmp_path / 'other'}")).schedule
    rate = schedule.learning_rate(12)
    assert (
        f"from step 12 of 30 on the schedules are those of a run of 3 epochs: learning rate {rate:.3g}, teacher's "
        "momentum 0."
    ) in done.stderr
    rates = {line["step"]: line["lr"] for line in lines(killed) if "lr" in line}
    assert max(rates) == 30 and rates[28] == schedule.learning_rate(27)
    assert (killed / "config-until-step-12.yaml").read_text() == before
    assert "epochs: 3" in (killed / "config.yaml").read_text()


def test_a_finished_run_is_extended(config, tmp_path):
    short = Trainer(config("train.epochs=1"))
    short.fit()
    short.directory.close()
    longer = Trainer(config("train.epochs=2"), resume="auto")
    assert (longer.step, longer.total_steps) == (10, 20)
    longer.fit()
    assert longer.directory.checkpoints.last_step() == 20


def test_an_unchanged_run_says_nothing_and_keeps_its_config(killed, config, capsys):
    Trainer(config("checkpoint.every_steps=6"), resume=str(killed)).fit()
    assert "resumed" not in capsys.readouterr().err
    assert [line for line in lines(killed) if "changed" in line] == []
    assert not list(killed.glob("config-until-*"))


def test_a_refused_resume_is_one_line_and_changes_nothing(killed, config, tmp_path):
    before = {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()}
    for overrides, message in (
        (["model.backbone=resnet18"], f"model.backbone was resnet8, now resnet18: {OTHER}"),
        (
            ["train.epochs=1"],
            "train.epochs=1 ends at step 10, but the checkpoint is of step 12: give at least 2 epochs",
        ),
    ):
        path = write(config("checkpoint.every_steps=6", *overrides), tmp_path / "c.yaml")
        done = run_program("train.py", "-c", path, "--resume", "auto")
        assert (done.returncode, done.stderr) == (2, f"error: {message}\n")
    assert before == {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()}


def test_an_earlier_checkpoint_of_the_same_directory_is_refused(killed, config):
    early, late = Checkpoints(killed / "checkpoints", keep=2).paths()
    with pytest.raises(UserError) as error:
        Trainer(config("checkpoint.every_steps=6"), resume=str(early))
    assert str(error.value) == (
        f"run.dir={killed} holds a later checkpoint (step 12) than {early} (step 6): name another run.dir, or move the "
        "later ones away"
    )
    assert Trainer(config(f"run.dir={killed.parent / 'branch'}"), resume=str(early)).step == 6
    assert late.exists()


def test_a_checkpoint_of_an_earlier_version_says_that_nothing_is_compared(killed, config, capsys):
    (path,) = (killed / "checkpoints").glob("*12.pt")
    state = torch.load(path)
    del state["run"]
    torch.save(state, path)
    assert Trainer(config("checkpoint.every_steps=6"), resume="auto").step == 12
    assert capsys.readouterr().err == (
        "an earlier version wrote the checkpoint of step 12, without its config and data: this run's are not compared "
        "with them\n"
    )
    with pytest.raises(UserError, match="the checkpoint does not fit this config"):
        Trainer(config("method.latent=16", f"run.dir={killed.parent / 'other'}"), resume=str(path))


ALONE = "leaves BatchNorm (and losses that compare images) a single image, whose variance is 0"
LAST = "with data.drop_last=false the last batch of an epoch, {} images, " + ALONE + ": set data.drop_last=true, or "


@pytest.mark.parametrize(
    ("overrides", "processes", "line"),
    [
        (
            ["data.batch_size=2", "train.accumulate=2"],
            1,
            f"data.batch_size=2 {ALONE}: make it at least 4 (processes: 1, train.accumulate=2)",
        ),
        (
            ["data.batch_size=1", "method.likelihood=implied", "method.leave_one_out=true"],
            1,
            f"data.batch_size=1 {ALONE}: make it at least 2 (processes: 1, train.accumulate=1)",
        ),
        (
            ["data.batch_size=4", "train.accumulate=2", "model.sync_batchnorm=false"],
            2,
            f"data.batch_size=4 {ALONE}: make it at least 8 (processes: 2, train.accumulate=2)",
        ),
        (["data.batch_size=4", "train.accumulate=2"], 2, None),
        (
            ["data.limit=33", "data.drop_last=false"],
            1,
            LAST.format(1) + "another data.limit (processes: 1, train.accumulate=1)",
        ),
        (
            ["data.limit=35", "data.drop_last=false", "train.accumulate=2"],
            1,
            LAST.format(3) + "another data.limit (processes: 1, train.accumulate=2)",
        ),
        (["data.limit=34", "data.drop_last=false"], 2, None),
        (
            ["data.limit=34", "data.drop_last=false", "model.sync_batchnorm=false"],
            2,
            LAST.format(2) + "another data.limit (processes: 2, train.accumulate=1)",
        ),
        (["data.limit=33"], 1, None),
    ],
)
def test_a_micro_batch_of_one_image_is_refused(config, digits, overrides, processes, line):
    said = None
    try:
        check_sizes(resolve(config(*overrides)), open_packed(digits), World(size=processes))
    except UserError as error:
        said = str(error)
    assert said == line


def test_off_a_terminal_every_log_is_a_plain_line(config, capsys):
    Trainer(config("train.epochs=1", "eval.every=1")).fit()
    out = capsys.readouterr().out.splitlines()
    logged = [line for line in out if "loss" in line]
    assert [line.split(":")[0] for line in logged] == [f"step {n} of 10, epoch {n / 10:.2f}" for n in (4, 8, 10)]
    assert all(part in logged[0] for part in (": loss ", ", images/s ", ", remaining 0"))
    assert out[-1].startswith("step 10 of 10, epoch 1.00: kNN top-1 0.")


def test_without_labels_a_run_says_why_there_is_no_knn(config, folders, tmp_path, capsys):
    images = next((folders / "tiny" / "train").iterdir())
    convert("folder", images, tmp_path / "data", format="resident", workers=1)
    overrides = ("train.epochs=1", "eval.every=1", "data.limit=8", "data.batch_size=4")
    Trainer(config(f"data.dir={tmp_path / 'data'}", *overrides)).fit()
    assert capsys.readouterr().err == f"no kNN during training: {tmp_path / 'data'} has no labels\n"


def test_a_run_is_resumed_without_the_weights_that_it_started_from(config, tmp_path):
    source = finish(config(f"run.dir={tmp_path / 'source'}", "data.limit=64", "train.epochs=1"))
    weights = tmp_path / "w.safetensors"
    shutil.copy(source / "backbone.safetensors", weights)
    kill_after(config(f"model.weights={weights}", "checkpoint.every_steps=3"), steps=14)
    weights.unlink()
    for keys in ((f"model.weights={weights}",), ()):
        resumed = Trainer(config(*keys, "checkpoint.every_steps=3"), resume="auto")
        assert resumed.step == 12
        resumed.directory.close()
