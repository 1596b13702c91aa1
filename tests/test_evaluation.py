"""Evaluation: every formula against a reference, every protocol on a trained run, and a run loaded again."""

import itertools
import json
import math
import runpy

import numpy as np
import pytest
import scipy.stats
import timm
import torch
import torchvision
from conftest import small_config
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

import vssl
from pipelines.errors import UserError
from pipelines.packed import open_packed
from vssl.checkpoint import Checkpoints, backbone_weights, export_backbone
from vssl.config import to_yaml
from vssl.engine import Trainer
from vssl.evaluation import OfflineEvaluation, knn_predict
from vssl.evaluation.accuracy import accuracies, wilson_interval
from vssl.evaluation.health import alignment, effective_rank, feature_health, feature_std, rankme, uniformity
from vssl.evaluation.linear import fit_linear, linear_predict, select_and_fit
from vssl.evaluation.uncertainty import (
    calibration,
    direction_score,
    length_score,
    most_certain_half,
    ood_auroc,
    score_report,
    selective_accuracy,
    variance_score,
)
from vssl.models import Teacher, build_student
from vssl.recipes import resolve


def clusters(count, classes=3, width=8, spread=1.0, seed=0):
    """Features around a centre for each class, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (count,), generator=generator)
    return centres[labels] + spread * torch.randn(count, width, generator=generator), labels


# Classifiers and their figures


def test_knn_votes_are_scikit_learns():
    bank, bank_labels = clusters(300)
    queries, _ = clusters(50, seed=1)
    reference = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(bank, bank_labels)
    votes = knn_predict(bank, bank_labels, queries, 3, k=20, temperature=0.07)
    np.testing.assert_allclose(votes, reference.predict_proba(queries), atol=1e-4)


def test_accuracies_by_hand():
    scores = torch.tensor([[5.0, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])
    found = accuracies(scores, torch.tensor([0, 1, 5]))
    assert (found["top1"], found["top5"], found["count"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3), 3)
    assert accuracies(scores[:, :3], torch.tensor([0, 1, 2]))["top5"] == 1.0


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (7, 7), (3, 10), (8123, 10_000)])
def test_the_interval_is_wilsons(hits, count):
    expected = scipy.stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_linear_classifiers_learn_as_torchs_do_each_by_itself():
    features, labels = clusters(60)
    rates = (0.03, 0.3)
    ours = fit_linear(features, labels, 3, rates, epochs=10, batch_size=60)
    for weights, rate in zip(ours, rates, strict=True):
        reference = nn.Linear(8, 3)
        nn.init.zeros_(reference.weight)
        nn.init.zeros_(reference.bias)
        optimizer = torch.optim.SGD(reference.parameters(), rate, momentum=0.9)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [6, 8])
        for _ in range(10):
            optimizer.zero_grad()
            nn.functional.cross_entropy(reference(features), labels).backward()
            optimizer.step()
            schedule.step()
        torch.testing.assert_close(weights[:-1], reference.weight.detach().T, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(weights[-1], reference.bias.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(linear_predict(ours, features)[1], reference(features).detach(), atol=1e-4, rtol=1e-4)


def test_linear_classification_equals_logistic_regression():
    train, val = clusters(600, spread=2.5), clusters(600, spread=2.5, seed=1)
    weights, held_out = select_and_fit(*train, 3, epochs=30)
    ours = accuracies(linear_predict(weights, val[0])[0], val[1])["top1"]
    reference = LogisticRegression(max_iter=1000).fit(*train).score(*val)
    assert 0.6 < reference < 0.99 and ours == pytest.approx(reference, abs=0.02)
    best = max(held_out, key=held_out.get)
    assert torch.equal(weights, fit_linear(*train, 3, (best,), epochs=30))


def test_the_learning_rate_is_chosen_on_images_that_were_not_trained_on():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(400, 500, generator=generator), torch.randint(4, (400,), generator=generator)
    weights = fit_linear(features, labels, 4, (0.1,), epochs=20)
    assert (linear_predict(weights, features)[0].argmax(dim=1) == labels).float().mean() > 0.9  # learnt by heart
    _, held_out = select_and_fit(features, labels, 4, epochs=20)
    assert max(held_out.values()) < 0.5


# Health


def test_rankme_counts_the_directions():
    generator = torch.Generator().manual_seed(0)
    orthogonal, _ = torch.linalg.qr(torch.randn(50, 8, generator=generator))
    assert rankme(orthogonal).item() == pytest.approx(8, rel=1e-4)
    assert rankme(torch.ones(50, 8)).item() == pytest.approx(1, abs=1e-3)
    features = torch.randn(50, 8, generator=generator)
    share = np.linalg.svd(features.numpy(), compute_uv=False)
    share = share / share.sum() + 1e-7
    assert rankme(features).item() == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-4)


def test_effective_rank_is_that_of_the_covariances_eigenvalues():
    for shape in ((50, 8), (8, 50)):
        features = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.arange(1, shape[1] + 1)
        unit = nn.functional.normalize(features.double(), dim=1)
        eigenvalues = torch.linalg.eigvalsh(unit.T.cov())
        expected = eigenvalues.sum() ** 2 / eigenvalues.square().sum()
        torch.testing.assert_close(effective_rank(features).double(), expected, rtol=1e-4, atol=0)
    assert effective_rank(torch.eye(8).repeat(4, 1)).item() == pytest.approx(7)  # all of them, less their mean
    assert effective_rank(torch.tensor([[1.0, 2.0]]).repeat(9, 1)).item() == pytest.approx(0, abs=1e-6)


def test_spread_is_1_in_all_directions_and_0_at_collapse():
    generator = torch.Generator().manual_seed(0)
    assert feature_std(torch.randn(5000, 64, generator=generator)).item() == pytest.approx(1, abs=0.01)
    assert feature_std(torch.ones(50, 64)).item() == pytest.approx(0, abs=1e-6)


def test_health_of_a_batch_compares_its_views():
    features = torch.randn(40, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    health = feature_health(features)
    one, other = features.chunk(2)
    assert not any(value.requires_grad for value in health.values())
    torch.testing.assert_close(health["alignment"], alignment(one, other).detach())
    torch.testing.assert_close(health["uniformity"], uniformity(one).detach())


def test_alignment_and_uniformity_by_hand():
    features, _ = clusters(12)
    other = features + 1
    unit = [row / np.linalg.norm(row) for row in features.double().numpy()]
    unit_other = [row / np.linalg.norm(row) for row in other.double().numpy()]
    squares = [((u - v) ** 2).sum() for u, v in zip(unit, unit_other, strict=True)]
    assert alignment(features, other).item() == pytest.approx(np.mean(squares), rel=1e-4)
    potentials = [math.exp(-2 * ((u - v) ** 2).sum()) for u, v in itertools.combinations(unit, 2)]
    assert uniformity(features).item() == pytest.approx(math.log(np.mean(potentials)), rel=1e-4)
    assert alignment(features, 3 * features).item() == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.ones(5, 4)).item() == pytest.approx(0, abs=1e-6)


def test_uniformity_of_more_rows_than_a_chunk():
    features = torch.randn(1500, 64, generator=torch.Generator().manual_seed(0))
    unit = nn.functional.normalize(features, dim=1)
    expected = torch.pdist(unit).square().mul(-2).exp().mean().log()  # the paper's own listing
    torch.testing.assert_close(uniformity(features), expected, rtol=1e-4, atol=1e-4)


# Uncertainty


def test_selective_accuracy_by_hand():
    correct = torch.tensor([True, False, True, True])
    score = torch.tensor([0.4, 0.3, 0.1, 0.2])
    expected = torch.tensor([1, 1, 2 / 3, 3 / 4], dtype=torch.float64)
    torch.testing.assert_close(selective_accuracy(correct, score), expected)


def test_a_score_that_says_nothing_gives_a_flat_curve():
    correct = torch.arange(10) < 7
    flat = selective_accuracy(correct, torch.zeros(10))
    torch.testing.assert_close(flat, torch.full((10,), 0.7, dtype=torch.float64))


def test_errors_drawn_from_the_predicted_variances_are_calibrated_in_every_group():
    generator = torch.Generator().manual_seed(0)
    variance = torch.rand(20_000, generator=generator) + 0.5
    error = variance * torch.randn(20_000, 50, generator=generator).square().mean(dim=1)
    found = calibration(variance, error)
    assert found["ratio"] == pytest.approx(1, abs=0.01)
    assert found["observed"] == pytest.approx(found["predicted"], rel=0.03)
    assert calibration(variance, 3 * error)["ratio"] == pytest.approx(3, abs=0.03)
    rank = scipy.stats.spearmanr(variance, error).statistic
    assert found["correlation"] == pytest.approx(rank) and rank > 0.5
    assert abs(calibration(variance, error.roll(1))["correlation"]) < 0.03


def test_the_most_certain_half_by_hand_and_its_error_by_repetition():
    correct = torch.tensor([True] * 45 + [False] * 5 + [True] * 30 + [False] * 20)
    half = most_certain_half(correct, torch.arange(100))
    assert half["top1"] == pytest.approx(0.9) and half["whole_top1"] == pytest.approx(0.75)
    assert half["standard_error"] == pytest.approx(math.sqrt(0.9 * 0.1 / 50))
    assert half["whole_standard_error"] == pytest.approx(math.sqrt(0.75 * 0.25 / 100))
    rng = np.random.default_rng(0)
    certain, rest = rng.binomial(50, 0.9, 20_000) / 50, rng.binomial(50, 0.6, 20_000) / 50
    difference = certain - (certain + rest) / 2
    assert half["difference"] == pytest.approx(0.15)
    assert half["difference_standard_error"] == pytest.approx(difference.std(), rel=0.05)


def test_auroc_counts_pairs():
    score, foreign = torch.tensor([0.1, 0.4, 0.35]), torch.tensor([0.8, 0.35])
    pairs = [1.0 if f > s else 0.5 if f == s else 0.0 for s in score for f in foreign]
    assert ood_auroc(score, foreign) == pytest.approx(np.mean(pairs))


def test_scores_rank_by_variance_and_the_direction_does_not_know_scale():
    mean, logvar = torch.randn(5, 8), torch.randn(5, 8)
    torch.testing.assert_close(variance_score(mean, logvar), logvar.mean(dim=1))
    torch.testing.assert_close(
        direction_score(10 * mean, logvar + 2 * math.log(10)), direction_score(mean, logvar), atol=1e-4, rtol=1e-4
    )
    assert (direction_score(mean, logvar + 1) > direction_score(mean, logvar)).all()
    assert torch.equal(length_score(mean, logvar), length_score(mean, logvar + 1))


def test_a_score_report_is_plain_and_its_histograms_are_densities():
    correct, score = torch.arange(100) % 3 > 0, torch.randn(100)
    report = json.loads(json.dumps(score_report(correct, score, 1 + torch.randn(40), points=10)))
    assert report["curve"]["coverage"] == pytest.approx(np.arange(0.1, 1.01, 0.1))
    assert report["curve"]["top1"][-1] == pytest.approx(0.66)
    histogram = report["histogram"]
    for name in ("val", "ood"):
        assert (np.diff(histogram["edges"]) * histogram[name]).sum() == pytest.approx(1)
    assert score_report(correct, score, None)["ood_auroc"] is None


# A run loaded again


@pytest.fixture(scope="module")
def trainer(digits, tmp_path_factory):
    """A finished run of VSSL in the Gaussian form on 320 digits."""
    trainer = Trainer(small_config(digits, tmp_path_factory.mktemp("runs") / "run", "objective.form=gaussian"))
    trainer.fit()
    trainer.directory.close()
    return trainer


@pytest.fixture(scope="module")
def run(trainer):
    return trainer.directory.path


@pytest.fixture
def untrained(config, tmp_path):
    """``untrained(*overrides)``: a run directory with a checkpoint of an untrained student."""

    def make(*overrides):
        settings = resolve(config(*overrides))
        student = build_student(settings.model, settings.data.image_size, method=settings.objective.name)
        run = tmp_path / "run"
        state = {"step": 0, "student": student.state_dict(), "teacher": Teacher(student.encoder).encoder.state_dict()}
        Checkpoints(run / "checkpoints", keep=1).save(0, state)
        (run / "config.yaml").write_text(to_yaml(settings))
        return run

    return make


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
    student = trainer.train_step.student.eval()
    normalised = trainer.augment.evaluate(
        torch.from_numpy(pixels)[:, None], torch.tensor([[8, 8]]).repeat(297, 1).int()
    )
    with torch.no_grad():
        features, posterior = student.encoder(normalised)
    torch.testing.assert_close(model.features(pixels), features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mean, posterior.mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(variance, posterior.logvar.exp(), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(features, trainer.train_step.teacher.encoder.eval()(normalised)[0], atol=1e-4)


def test_the_forms_that_images_may_have(run, digits):
    pixels, _ = images(digits)
    model = vssl.load(run)
    expected = model.embed(pixels[:8]).mean
    prepared = model.augment.evaluate(torch.from_numpy(pixels[:8])[:, None], torch.tensor([[8, 8]] * 8))
    wide = np.pad(pixels[7], ((0, 0), (5, 5), (0, 0)))  # the centre square is the image
    for same in (torch.from_numpy(pixels[:8]), [Image.fromarray(i) for i in pixels[:8]], prepared, [*pixels[:7], wide]):
        torch.testing.assert_close(model.embed(same).mean, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"an image must be uint8 \[H, W, 3\], not torch.uint8 \[8, 3\]"):
        model.embed(pixels[0])
    with pytest.raises(ValueError, match=r"normalised images must be \[N, 3, 8, 8\]"):
        model.embed(torch.zeros(2, 3, 9, 9))


def test_the_cosine_forms_means_have_the_length_that_its_variances_are_about(untrained, digits):
    mean, _ = vssl.load(untrained("objective.form=cosine")).embed(images(digits)[0][:4])
    torch.testing.assert_close(mean.norm(dim=1), torch.full((4,), math.sqrt(8)), check_device=False)


@pytest.mark.parametrize("method", ["byol", "moco_v3"])
def test_other_methods_have_features_but_no_variance(untrained, digits, method):
    model = vssl.load(untrained(f"objective.name={method}"))
    assert model.features(images(digits)[0][:4]).shape == (4, 64)
    with pytest.raises(UserError, match=f"has no variance: objective.name={method}"):
        model.embed(images(digits)[0][:4])


def test_weights_that_do_not_fit_are_one_clear_line(untrained, config):
    run = untrained()
    (run / "config.yaml").write_text(to_yaml(resolve(config("model.latent=9"))))
    with pytest.raises(UserError, match="does not fit its config: size mismatch"):
        vssl.load(run)


def test_an_exported_cifar_backbone_loads_strictly_elsewhere_and_here(untrained, tmp_path):
    model = vssl.load(untrained("model.backbone=resnet18", "data.image_size=32"), device="cpu")
    export_backbone(backbone_weights(model.student), tmp_path / "run" / "backbone.safetensors")
    weights, views = load_file(tmp_path / "run" / "backbone.safetensors"), torch.randn(2, 3, 32, 32)
    for backbone in (torchvision.models.resnet18(weights=None), timm.create_model("resnet18", num_classes=0)):
        backbone.conv1, backbone.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
        backbone.fc = nn.Identity()
        backbone.load_state_dict(weights, strict=True)
        torch.testing.assert_close(backbone.eval()(views), model.features(views), atol=1e-4, rtol=1e-4)
    exported = vssl.load(tmp_path / "run" / "backbone.safetensors", device="cpu")
    torch.testing.assert_close(exported.features(views), model.features(views))


def test_a_prediction_meets_the_teachers_other_view(run):
    model = vssl.load(run, device="cpu")
    views = torch.randn(6, 3, model.config.data.image_size, model.config.data.image_size)
    (mean, logvar), theirs = model.predict(views)
    _, prediction = model.student(views)
    _, teacher = model.teacher(views)
    torch.testing.assert_close(logvar, prediction.logvar)
    cosine = nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(mean, theirs), cosine(prediction.mean, teacher.mean[[3, 4, 5, 0, 1, 2]]))
    state = Checkpoints(run / "checkpoints", keep=1).newest()
    torch.testing.assert_close(model.teacher.state_dict(), state["teacher"])


# tools/evaluate.py


@pytest.fixture
def evaluate(monkeypatch, capsys):
    """``evaluate(*arguments)`` runs the program; gives its exit code, what it printed, and its errors."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["evaluate.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path("tools/evaluate.py", run_name="__main__")
        out, err = capsys.readouterr()
        return end.value.code, out, err

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
    assert 1 <= report["rankme"] <= 64 and 0 < report["feature_std"] < 1.1
    assert -4 < report["uniformity"] < 0 < report["alignment"] < 4


def test_run_checkpoint_and_export_are_evaluated_alike(run, evaluate, tmp_path):
    reports = []
    for source in (run, sorted((run / "checkpoints").iterdir())[-1], run / "backbone.safetensors"):
        assert evaluate(source, "--protocol", "knn", "--json", tmp_path / "k.json", "--batch-size", 100)[0] == 0
        report = json.loads((tmp_path / "k.json").read_text())
        reports.append({key: value for key, value in report.items() if key not in ("source", "step")})
    assert reports[0] == reports[1] == reports[2]


def test_linear(run, evaluate, tmp_path):
    assert evaluate(run, "--protocol", "linear", "--json", tmp_path / "l.json")[0] == 0
    report = json.loads((tmp_path / "l.json").read_text())
    low, high = report["top1_interval"]
    assert report["protocol"] == "linear" and 0.5 < low < report["top1"] < high <= report["top5"] <= 1
    assert report["held_out_top1"][f"{report['learning_rate']:.4g}"] == max(report["held_out_top1"].values())


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


def test_mistakes_are_one_line_and_exit_code_2(untrained, run, evaluate, tmp_path):
    byol = untrained("objective.name=byol")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text((run / "config.yaml").read_text())
    for arguments, message in [
        ((tmp_path / "absent", "--protocol", "knn"), "absent: no such run"),
        ((empty, "--protocol", "knn"), "empty holds no whole checkpoint"),
        ((run / "metrics.jsonl", "--protocol", "knn"), "metrics.jsonl is not a whole checkpoint"),
        ((byol, "--protocol", "uncertainty"), "has no variance: objective.name=byol"),
        ((run / "backbone.safetensors", "--protocol", "uncertainty"), "is a backbone alone"),
        ((run, "--protocol", "knn", "--data", tmp_path), "not a packed data set"),
    ]:
        code, _, err = evaluate(*arguments)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and message in err
    code, _, err = evaluate(run, "--protocol", "knn", "--ood", tmp_path)
    assert code == 2 and "--ood and --plot belong to --protocol uncertainty" in err


def test_data_without_labels_is_refused(run, digits, tmp_path):
    manifest = json.loads((digits / "manifest.json").read_text())
    del manifest["splits"]["val"]
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in manifest["splits"]["train"]["files"]:
        (bare / file).symlink_to(digits / file)
    (bare / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="needs the splits train and val with labels, not so val"):
        OfflineEvaluation(vssl.load(run), open_packed(bare))
