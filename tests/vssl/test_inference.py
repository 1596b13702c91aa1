"""A run loaded again, and tools/evaluate.py on it."""

import json
import math

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import vssl
from pipelines.errors import UserError
from pipelines.formats.packed import open_packed
from support.programs import run_program
from support.training import save_untrained, small_config
from vssl.config import to_yaml
from vssl.engine.checkpoint import Checkpoints, export_backbone
from vssl.engine.config import resolve
from vssl.engine.trainer import Trainer
from vssl.evaluation.accuracy import accuracies
from vssl.evaluation.knn import knn_predict
from vssl.evaluation.offline import OfflineEvaluation
from vssl.models.weights import backbone_weights

# A run loaded again


@pytest.fixture(scope="module")
def trainer(digits, tmp_path_factory):
    """A finished run of VSSL in the Gaussian form on 320 digits."""
    trainer = Trainer(small_config(digits, tmp_path_factory.mktemp("runs") / "run", "method.form=gaussian"))
    trainer.fit()
    trainer.directory.close()
    return trainer


@pytest.fixture(scope="module")
def run(trainer):
    return trainer.directory.path


@pytest.fixture
def untrained(config):
    """``untrained(*overrides)``: a run directory with a checkpoint of an untrained student."""
    return lambda *overrides: save_untrained(config(*overrides))


@pytest.fixture(scope="module")
def cifar(digits, tmp_path_factory):
    """An untrained ResNet-18 with CIFAR's stem, and its export."""
    run = tmp_path_factory.mktemp("cifar") / "run"
    save_untrained(small_config(digits, run, "model.backbone=resnet18", "data.image_size=32"))
    model = vssl.load(run, device="cpu")
    export_backbone(backbone_weights(model.method.state_dict()), run / "backbone.safetensors")
    return model, run / "backbone.safetensors"


def images(digits, split="val"):
    """uint8 [N, 8, 8, 3] and int64 [N]."""
    return np.load(digits / f"{split}.npy"), torch.from_numpy(np.load(digits / f"{split}-labels.npy"))


def test_three_lines_give_mean_and_variance(run, digits):
    pictures = [Image.fromarray(image) for image in images(digits)[0][:40]]

    mean, variance = vssl.load(run).embed(pictures)

    assert mean.shape == variance.shape == (40, 8) and mean.dtype == variance.dtype == torch.float32
    assert (variance > math.exp(-2)).all() and (variance < math.exp(2)).all()
    assert not mean.requires_grad


def test_an_embedding_is_the_trained_students_in_evaluation_mode(trainer, run, digits):
    pixels, _ = images(digits)
    model = vssl.load(run, device="cpu")
    mean, variance = model.embed(pixels)
    method = trainer.train_step.method.eval()
    normalised = model.augment.evaluate(torch.from_numpy(pixels)[:, None], torch.tensor([[8, 8]]).repeat(297, 1).int())
    with torch.no_grad():
        features, posterior = method.student(normalised)
    torch.testing.assert_close(model.features(pixels), features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mean, posterior.mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(variance, posterior.logvar.exp(), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(features, method.teacher(normalised)[0], atol=1e-4)


def test_images_may_have_several_forms(run, digits):
    pixels, _ = images(digits)
    model = vssl.load(run)
    expected = model.embed(pixels[:8]).mean
    prepared = model.augment.evaluate(torch.from_numpy(pixels[:8])[:, None], torch.tensor([[8, 8]] * 8))
    wide = np.pad(pixels[7], ((0, 0), (5, 5), (0, 0)))  # the centre square is the image
    for same in (torch.from_numpy(pixels[:8]), [Image.fromarray(i) for i in pixels[:8]], prepared, [*pixels[:7], wide]):
        torch.testing.assert_close(model.embed(same).mean, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"normalised images must be \[N, 3, 8, 8\]"):
        model.embed(torch.zeros(2, 3, 9, 9))


def test_the_cosine_forms_means_have_the_length_that_its_variances_refer_to(untrained, digits):
    mean, _ = vssl.load(untrained("method.form=cosine")).embed(images(digits)[0][:4])
    torch.testing.assert_close(mean.norm(dim=1), torch.full((4,), math.sqrt(8)), check_device=False)


@pytest.mark.parametrize("method", ["byol", "moco_v3"])
def test_other_methods_have_features_but_no_variance(untrained, digits, method):
    model = vssl.load(untrained(f"method.name={method}"))
    assert model.features(images(digits)[0][:4]).shape == (4, 64)
    with pytest.raises(UserError, match=f"method.name={method} has no variance"):
        model.embed(images(digits)[0][:4])


def test_weights_that_do_not_fit_are_one_clear_line(untrained, config):
    run = untrained()
    (run / "config.yaml").write_text(to_yaml(resolve(config("method.latent=9"))))
    with pytest.raises(UserError, match="does not fit its config: size mismatch"):
        vssl.load(run)


@pytest.mark.parametrize("library", ["torchvision.models", "timm.models"])
def test_an_exported_cifar_backbone_loads_strictly_elsewhere(cifar, library):
    backbone, (model, export), views = pytest.importorskip(library).resnet18(), cifar, torch.randn(2, 3, 32, 32)
    backbone.conv1, backbone.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    backbone.fc = nn.Identity()
    backbone.load_state_dict(load_file(export), strict=True)
    torch.testing.assert_close(backbone.eval()(views), model.features(views), atol=1e-4, rtol=1e-4)


def test_an_export_gives_its_runs_features(cifar):
    (model, export), views = cifar, torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(vssl.load(export, device="cpu").features(views), model.features(views))


def test_a_prediction_is_compared_with_the_teachers_other_view(run):
    model = vssl.load(run, device="cpu")
    views = torch.randn(6, 3, model.config.data.image_size, model.config.data.image_size)
    (mean, logvar), theirs = model.method.predict(views)
    _, embedding = model.method.student(views)
    _, teacher = model.method.teacher(views)
    torch.testing.assert_close(logvar, embedding.logvar)
    torch.testing.assert_close(mean, model.method.predictor(embedding.mean))
    torch.testing.assert_close(theirs, teacher.mean[[3, 4, 5, 0, 1, 2]])
    state = Checkpoints(run / "checkpoints", keep=1).newest()
    torch.testing.assert_close(dict(model.method.state_dict()), dict(state["method"]))


# tools/evaluate.py


@pytest.fixture
def evaluate():
    """``evaluate(*arguments)`` runs the program; returns its exit code, standard output and standard error."""

    def call(*arguments):
        done = run_program("tools/evaluate.py", *arguments)
        return done.returncode, done.stdout, done.stderr

    return call


def test_knn_uses_the_whole_training_split(run, digits, evaluate, tmp_path):
    code, out, _ = evaluate(run, "--protocol", "knn", "--json", tmp_path / "deep" / "k.json", "--device", "cpu")
    report = json.loads((tmp_path / "deep" / "k.json").read_text())
    (train, train_labels), (val, val_labels) = images(digits, "train"), images(digits)
    model = vssl.load(run, device="cpu")
    votes = knn_predict(model.features(train), train_labels, model.features(val), 10, k=20, temperature=0.07)
    assert code == 0 and (report["protocol"], report["train_count"], report["count"]) == ("knn", 1500, 297)
    expected = accuracies(votes, val_labels)
    assert [report["top1"], report["top5"]] == pytest.approx([expected["top1"], expected["top5"]])
    assert report["top1_interval"] == pytest.approx(expected["top1_interval"])
    assert f"knn top-1: {expected['top1']:.4f}" in out
    wide = knn_predict(model.features(train), train_labels, model.features(val), 10, k=200, temperature=0.1)
    assert report["wide"]["top1"] == pytest.approx(accuracies(wide, val_labels)["top1"])
    assert f"with k=200, T=0.1: {report['wide']['top1']:.4f}" in out
    assert "--protocol knn" in report["command"] and report["environment"]["hardware"]["cpu"]
    assert 1 <= report["rankme"] <= 64 and 0 < report["feature_std"] < 1.1
    assert -4 < report["uniformity"] < 0 < report["alignment"] < 4


def test_run_checkpoint_and_export_are_evaluated_alike(run, evaluate, tmp_path):
    reports = []
    for source in (run, sorted((run / "checkpoints").iterdir())[-1], run / "backbone.safetensors"):
        assert evaluate(source, "--protocol", "knn", "--json", tmp_path / "k.json", "--batch-size", 100)[0] == 0
        report = json.loads((tmp_path / "k.json").read_text())
        reports.append({key: value for key, value in report.items() if key not in ("command", "source", "step")})
    assert reports[0] == reports[1] == reports[2]


def test_linear(run, evaluate, tmp_path):
    assert evaluate(run, "--protocol", "linear", "--json", tmp_path / "l.json")[0] == 0
    report = json.loads((tmp_path / "l.json").read_text())
    low, high = report["top1_interval"]
    assert report["protocol"] == "linear" and 0.5 < low < report["top1"] < high <= report["top5"] <= 1
    # Selected by likelihood, so that its accuracy is nearly the best.
    selected = report["held_out_top1"][f"{report['learning_rate']:.4g}"]
    assert selected == pytest.approx(max(report["held_out_top1"].values()), abs=0.05)


def test_uncertainty(run, digits, evaluate, tmp_path):
    arguments = ("--protocol", "uncertainty", "--ood", digits, "--json", tmp_path / "u.json")
    code, out, _ = evaluate(run, *arguments)
    report = json.loads((tmp_path / "u.json").read_text())
    assert code == 0 and report["ood"]["count"] == 297
    for score in report["scores"].values():
        assert score["ood_auroc"] == pytest.approx(0.5)  # the same images
        assert score["most_certain_half"]["whole_top1"] == pytest.approx(report["top1"])
        assert score["curve"]["top1"][-1] == pytest.approx(report["top1"])
    calibrated = report["calibration"]
    assert calibrated["predicted"] == sorted(calibrated["predicted"]) and len(calibrated["observed"]) == 10
    assert calibrated["ratio"] > 0 and -1 <= calibrated["correlation"] <= 1
    assert (
        list(report["scores"]) == ["variance", "decoder", "marginal", "norm", "neighbour"] and 0 < report["r_at_1"] <= 1
    )
    for score in report["scores"].values():
        assert 0 < score["r_auroc"] < 1 and score["aurc"] >= score["e_aurc"] >= 0
        assert all(-1 <= value <= 1 for value in score["corruptions"].values())
    assert "by variance, the most certain half" in out and "squared error over predicted variance" in out
    assert Image.open(tmp_path / "u.png").width > 500


def test_another_data_set(untrained, digits, evaluate):
    run = untrained("data.dir=gone", "data.loader=torch")
    assert evaluate(run, "--protocol", "knn")[0] == 2
    assert evaluate(run, "--protocol", "knn", "--data", digits)[0] == 0


def test_an_export_without_its_run_needs_a_config(run, digits, evaluate, tmp_path):
    (tmp_path / "b.safetensors").write_bytes((run / "backbone.safetensors").read_bytes())
    code, _, err = evaluate(tmp_path / "b.safetensors", "--protocol", "knn")
    assert code == 2 and err.count("\n") == 1 and "no config.yaml of its run beside it: give --config FILE" in err
    assert evaluate(tmp_path / "b.safetensors", "--protocol", "knn", "--config", run / "config.yaml")[0] == 0


def test_the_weights_of_another_library_are_evaluated_with_the_configs_transform(digits, evaluate, tmp_path):
    network = torchvision.models.resnet18().eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "resnet18.pth")
    keys = ["model.backbone=resnet18", "model.stem=imagenet", "data.image_size=16", "augment.mean=[0.1,0.2,0.3]"]
    arguments = ("--protocol", "knn", "--data", digits, "--json", tmp_path / "k.json", "--device", "cpu")
    code, _, err = evaluate(tmp_path / "resnet18.pth", *arguments, "--config", "configs/demo.yaml", *keys)
    assert (code, err) == (0, f"{tmp_path / 'resnet18.pth'}: ignored: fc.weight, fc.bias\n")
    report = json.loads((tmp_path / "k.json").read_text())
    assert (report["method"], report["step"], report["backbone"]) == (None, None, "resnet18")
    model = vssl.load(tmp_path / "resnet18.pth", device="cpu", config="configs/demo.yaml", overrides=keys)
    pixels, network.fc = torch.full((1, 8, 8, 3), 51, dtype=torch.uint8), nn.Identity()
    std = torch.tensor(model.config.augment.std)
    normalised = ((0.2 - torch.tensor([0.1, 0.2, 0.3])) / std).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    torch.testing.assert_close(model.features(pixels), network(normalised), atol=1e-4, rtol=1e-4)


def test_overrides_change_a_runs_own_config(untrained, digits, evaluate):
    run = untrained("data.dir=gone", "data.loader=torch")
    assert evaluate(run, "--protocol", "knn", f"data.dir={digits}", "data.loader=auto")[0] == 0
    code, _, err = evaluate(run, "--protocol", "knn", "data.sizes=3")
    assert code == 2 and "unknown config key 'data.sizes'" in err


def test_data_without_labels_is_refused(run, digits, tmp_path):
    manifest = json.loads((digits / "manifest.json").read_text())
    del manifest["splits"]["val"]
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in manifest["splits"]["train"]["files"]:
        (bare / file).symlink_to(digits / file)
    (bare / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="needs labelled images in train and val, 2 of each; val has fewer"):
        OfflineEvaluation(vssl.load(run), open_packed(bare))


# The teacher's weights, and networks that other programs take


def test_the_teacher_can_take_the_students_place(trainer, run, tmp_path):
    teacher = vssl.load(run, device="cpu", teacher=True)
    state = trainer.train_step.method.state_dict()
    weights, students = backbone_weights(state, teacher=True), backbone_weights(state)
    assert all(torch.equal(value, weights[key]) for key, value in teacher.backbone.state_dict().items())
    assert any(not torch.equal(value, students[key]) for key, value in weights.items())
    out = tmp_path / "teacher.safetensors"
    run_program("export", run, "--teacher", "--out", out)
    assert all(torch.equal(value, weights[key]) for key, value in load_file(out).items())
    with pytest.raises(UserError, match="without a teacher"):
        vssl.load(run / "backbone.safetensors", device="cpu", teacher=True)


def test_a_method_without_a_teacher_says_so(untrained, tmp_path):
    run = untrained("method.name=vicreg")
    with pytest.raises(UserError, match="vicreg has no teacher"):
        vssl.load(run, device="cpu", teacher=True)


@pytest.mark.parametrize("network", ["resnet8", "resnet18", "support.networks:Dropping"])
def test_a_loaded_network_is_made_of_torchs_layers(untrained, network):
    side = 64 if network == "resnet18" else 8
    network = vssl.load(untrained(f"model.backbone={network}", f"data.image_size={side}"), device="cpu").backbone
    images = torch.randn(2, 3, side, side)
    features = network(images)
    for other in (
        torch.jit.script(network),
        torch.fx.symbolic_trace(network),
        torch.export.export(network, (images,)).module(),
    ):
        torch.testing.assert_close(other(images), features)
    of_torch = (type(part).__module__.split(".")[0] for part in network.modules() if part is not network)
    assert set(of_torch) <= {"torch", "torchvision"}
