"""Evaluation: every formula against a reference, every protocol on a trained run, and a run loaded again."""

import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from vssl.evaluation.accuracy import accuracies, wilson_interval
from vssl.evaluation.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from vssl.evaluation.feature_statistics import (
    alignment,
    effective_rank,
    feature_health,
    feature_std,
    rankme,
    uniformity,
)
from vssl.evaluation.knn import knn_predict, nearest_neighbours
from vssl.evaluation.linear import LEARNING_RATES, fit_linear, linear_predict, select_and_fit
from vssl.evaluation.uncertainty import (
    auroc,
    calibration,
    decoder_scores,
    excess_area,
    most_certain_half,
    nearest_is_right,
    rank_correlation,
    score_report,
    selective_accuracy,
    uncertainty_scores,
)
from vssl.models.heads import Gaussian


def clusters(count, classes=3, width=8, spread=1.0, seed=0):
    """Features around a centre for each class, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (count,), generator=generator)
    return centres[labels] + spread * torch.randn(count, width, generator=generator), labels


# Classifiers and their accuracy


def test_knn_votes_are_scikit_learns():
    bank, bank_labels = clusters(300)
    queries, _ = clusters(50, seed=1)
    reference = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(bank, bank_labels)
    votes = knn_predict(bank, bank_labels, queries, 3, k=20, temperature=0.07)
    np.testing.assert_allclose(votes, reference.predict_proba(queries), atol=1e-4)


def test_the_nearest_neighbour_of_a_row_is_itself():
    bank, _ = clusters(1100)
    similarity, nearest = nearest_neighbours(bank, 3 * bank, 2)
    assert torch.equal(nearest[:, 0], torch.arange(1100))
    np.testing.assert_allclose(similarity[:, 0], 1, atol=1e-5)
    assert nearest_neighbours(bank[:3], bank, 5)[1].shape == (1100, 3)


def test_accuracies_by_hand():
    scores = torch.tensor([[5.0, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])
    found = accuracies(scores, torch.tensor([0, 1, 5]))
    assert (found["top1"], found["top5"], found["count"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3), 3)
    assert accuracies(scores[:, :3], torch.tensor([0, 1, 2]))["top5"] == 1.0
    without = scores.where(scores > 1, -math.inf)  # two classes are no answer
    assert accuracies(without, torch.tensor([4, 1, 5]))["top5"] == 0.0


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (7, 7), (3, 10), (8123, 10_000)])
def test_the_interval_is_wilsons(hits, count):
    expected = scipy.stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_linear_classifiers_trained_together_equal_torchs_trained_one_by_one():
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
    assert list(held_out) == list(LEARNING_RATES)


def test_the_learning_rate_is_chosen_on_images_that_were_not_trained_on():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(400, 500, generator=generator), torch.randint(4, (400,), generator=generator)
    weights = fit_linear(features, labels, 4, (0.1,), epochs=20)
    assert (linear_predict(weights, features)[0].argmax(dim=1) == labels).float().mean() > 0.9  # memorised
    _, held_out = select_and_fit(features, labels, 4, epochs=20)
    assert max(held_out.values()) < 0.5


# Health


def test_rankme_counts_directions():
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
    assert effective_rank(torch.eye(8).repeat(4, 1)).item() == pytest.approx(7)  # all directions but the mean's
    assert effective_rank(torch.tensor([[1.0, 2.0]]).repeat(9, 1)).item() == pytest.approx(0, abs=1e-6)


def test_spread_is_1_in_all_directions_and_0_at_collapse():
    generator = torch.Generator().manual_seed(0)
    assert feature_std(torch.randn(5000, 64, generator=generator)).item() == pytest.approx(1, abs=0.01)
    assert feature_std(torch.ones(50, 64)).item() == pytest.approx(0, abs=1e-6)


def test_health_of_a_batch_compares_its_views():
    features = torch.randn(40, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    health = feature_health(features, 20)
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


def test_an_uninformative_score_gives_a_flat_curve():
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
    low, high = torch.tensor([0.1, 0.4, 0.35]), torch.tensor([0.8, 0.35])
    pairs = [1.0 if h > x else 0.5 if h == x else 0.0 for x in low for h in high]
    assert auroc(low, high)[0] == pytest.approx(np.mean(pairs))


def test_the_standard_error_of_an_auroc_is_that_of_repeated_samples():
    generator = torch.Generator().manual_seed(0)
    areas, errors = zip(
        *(auroc(torch.randn(60, generator=generator), 0.7 + torch.randn(40, generator=generator)) for _ in range(400)),
        strict=True,
    )
    assert np.mean(errors) == pytest.approx(np.std(areas), rel=0.15)


def test_the_nearest_image_is_another_one_and_its_label_decides():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [1.0, 1.0]])
    assert nearest_is_right(features, torch.tensor([0, 0, 1, 2, 0])).tolist() == [True, True, False, False, True]
    features, labels = torch.randn(1500, 4), torch.randint(3, (1500,))
    similarity = nn.functional.cosine_similarity(features[:, None], features[None], dim=2).fill_diagonal_(-2)
    assert torch.equal(nearest_is_right(features, labels), labels[similarity.argmax(dim=1)] == labels)


def test_a_perfect_ranking_has_no_excess_area_and_the_worst_has_the_most():
    correct = torch.arange(100) < 70
    perfect, worst = (excess_area(correct, score) for score in (torch.arange(100.0), -torch.arange(100.0)))
    assert perfect["e_aurc"] == pytest.approx(0) and perfect["aurc"] > 0
    assert worst["e_aurc"] > excess_area(correct, torch.zeros(100))["e_aurc"] > 0.1


def test_ence_is_the_mean_relative_error_of_the_deviations():
    variance = torch.linspace(1, 2, 1000)
    assert calibration(variance, variance)["ence"] == pytest.approx(0, abs=1e-6)
    assert calibration(variance, 4 * variance)["ence"] == pytest.approx(1, abs=1e-5)  # twice the deviation


def test_rank_correlation_ignores_scale_and_a_constant_has_none():
    values = torch.randn(50)
    assert rank_correlation(values, values.exp()) == pytest.approx(1)
    assert rank_correlation(values, torch.ones(50)) == 0


def test_the_controls_do_not_see_the_variance():
    mean, logvar, features = torch.randn(5, 8), torch.randn(5, 8), torch.randn(5, 3)
    bank_means, bank = torch.randn(30, 8), torch.randn(30, 3)
    one, other = (
        uncertainty_scores(Gaussian(mean, logvars), features, bank_means, bank, temperature=0.1, k=2)
        for logvars in (logvar, logvar + 1)
    )
    torch.testing.assert_close(one["variance"] + 1, other["variance"])
    assert all(torch.equal(one[name], other[name]) for name in ("decoder", "marginal", "norm", "neighbour"))
    torch.testing.assert_close(one["norm"], -features.norm(dim=1).log())
    distance = 1 - nn.functional.cosine_similarity(features[:, None], bank[None], dim=2)
    torch.testing.assert_close(one["neighbour"], distance.sort(dim=1).values[:, 1])


def test_the_decoders_scores_are_those_of_a_categorical_distribution_and_of_its_normaliser():
    means, bank = 3 * torch.randn(1100, 4), torch.randn(30, 4)
    cosines = nn.functional.cosine_similarity(means[:, None], bank[None], dim=2)
    entropy, surprise = decoder_scores(means, bank, 0.2)
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=cosines / 0.2).entropy())
    torch.testing.assert_close(surprise, -(cosines / 0.2).exp().mean(dim=1).log())
    entropy, surprise = decoder_scores(bank[:1], bank[:1].expand(7, 4), 0.2)  # seven equal images
    assert entropy.item() == pytest.approx(math.log(7), abs=1e-5) and surprise.item() == pytest.approx(-5, abs=1e-5)


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_stronger_corruption_changes_an_image_more(name, side):
    coarse = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = nn.functional.interpolate(coarse, side, mode="bilinear")
    changes = [(corrupt(images, name, strength) - images).abs().mean().item() for strength in range(STRENGTHS + 1)]
    assert changes[0] == 0 and changes == sorted(changes) and changes[1] > 0
    worst = corrupt(images, name, STRENGTHS)
    assert worst.shape == images.shape and worst.min() >= 0 and worst.max() <= 1
    assert torch.equal(worst, corrupt(images, name, STRENGTHS))


def test_a_score_report_is_plain_and_its_histograms_are_densities():
    correct, score = torch.arange(100) % 3 > 0, torch.randn(100)
    report = json.loads(json.dumps(score_report(correct, ~correct, score, 1 + torch.randn(40), points=10)))
    assert report["curve"]["coverage"] == pytest.approx(np.arange(0.1, 1.01, 0.1))
    assert report["curve"]["top1"][-1] == pytest.approx(0.66)
    histogram = report["histogram"]
    for name in ("val", "ood"):
        assert (np.diff(histogram["edges"]) * histogram[name]).sum() == pytest.approx(1)
    assert score_report(correct, torch.ones(100, dtype=torch.bool), score, None)["ood_auroc"] is None
    assert score_report(correct, torch.ones(100, dtype=torch.bool), score, None)["r_auroc"] is None
