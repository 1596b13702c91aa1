"""Losses of several full and local views are those of a written-out double loop over pairs, in value and gradient."""

import math

import pytest
import torch
from torch.nn import functional as F

from vssl.collectives import Peers
from vssl.methods.byol import byol_loss
from vssl.methods.moco_v3 import moco_v3_loss
from vssl.methods.pairs import ViewCounts, pair_rows
from vssl.methods.vicreg import vicreg_loss
from vssl.methods.vssl import VSSL, VSSLOptions
from vssl.models.heads import Gaussian

B, D = 5, 4
COUNTS = [ViewCounts(3), ViewCounts(2, 3, 0.25), ViewCounts(4, 1, 2.0), ViewCounts(2, 2, 0.0)]


def draw(views, seed):
    """float32 [views * B, D]."""
    return torch.randn(views * B, D, generator=torch.Generator().manual_seed(seed))


def over_pairs(counts, term):
    """The weighted mean of ``term(s, t)`` over a student's view s and a teacher's view t, each [B, D] of all images."""
    total, weights = 0.0, 0.0
    for t in range(counts.full):
        for s in range(counts.full + counts.local):
            if s != t:
                weight = 1.0 if s < counts.full else counts.local_weight
                total, weights = total + weight * term(s, t), weights + weight
    return total / weights


def assert_equal_with_gradients(loss, reference, *inputs):
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-6)
    ours, theirs = (torch.autograd.grad(value, inputs, allow_unused=True) for value in (loss, reference))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def split(rows):
    return rows.view(-1, B, D)


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_byol(counts):
    student, teacher = draw(counts.full + counts.local, 0).requires_grad_(), draw(counts.full, 1)

    def term(s, t):
        return (F.normalize(split(student)[s], dim=1) - F.normalize(split(teacher)[t], dim=1)).square().sum(1).mean()

    loss = byol_loss(*pair_rows(counts, student, teacher), counts)
    assert_equal_with_gradients(loss, 2 * over_pairs(counts, term), student)


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_moco_v3(counts):
    student, teacher = draw(counts.full + counts.local, 0).requires_grad_(), draw(counts.full, 1)

    def term(s, t):
        logits = F.normalize(split(student)[s], dim=1) @ F.normalize(split(teacher)[t], dim=1).T / 0.3
        return 2 * 0.3 * -logits.log_softmax(dim=1).diagonal().mean()

    loss = moco_v3_loss(student, teacher, 0.3, Peers(), counts)["loss"]
    assert_equal_with_gradients(loss, 2 * over_pairs(counts, term), student)


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_vicreg(counts):
    rows = draw(counts.full + counts.local, 0).requires_grad_()
    views = split(rows)
    weights = [1.0] * counts.full + [counts.local_weight] * counts.local

    def variance(z):
        return (1 - (z.var(dim=0) + 1e-4).sqrt()).clamp(min=0).mean()

    def covariance(z):
        c = torch.cov(z.T)
        return sum(c[i, j] ** 2 for i in range(D) for j in range(D) if i != j) / D

    def over_views(term):
        return sum(w * term(z) for w, z in zip(weights, views, strict=True)) / sum(weights)

    distance = over_pairs(counts, lambda s, t: (views[s] - views[t]).square().mean())
    reference = 3 * distance + 5 * 2 * over_views(variance) + 7 * 2 * over_views(covariance)
    assert_equal_with_gradients(vicreg_loss(rows, 3, 5, 7, Peers(), counts)["loss"], reference, rows)


def log_normal(x, mu, logvar):
    """log N(x; mu, exp(logvar)), per dimension: the mean instead of the sum, [B]."""
    return -0.5 * (math.log(2 * math.pi) + logvar + (x - mu).square() / logvar.exp()).mean(dim=-1)


def kl(mu_q, logvar_q, mu_p, logvar_p):
    """Per dimension, [B]."""
    ratio, distance = (logvar_q - logvar_p).exp(), (mu_q - mu_p).square() / logvar_p.exp()
    return 0.5 * (logvar_p - logvar_q + ratio + distance - 1).mean(dim=-1)


def implied(log_density):
    """Log-density of an image's own prior, less the log of the mean over the others', from [B, B]."""
    others = torch.stack([torch.cat([row[:i], row[i + 1 :]]) for i, row in enumerate(log_density)])
    return log_density.diagonal() - others.exp().mean(dim=1).log()


TEMPERATURE, BETA, KAPPA = 0.5, 0.7, 3.0


def gaussian_term(likelihood, mu_s, logvar_s, mu_t, logvar_t, _):
    """-log-likelihood + beta KL of a pair of views."""
    if likelihood == "prior":
        expected = log_normal(mu_s, mu_t, logvar_t) - 0.5 * (logvar_s - logvar_t).exp().mean(dim=1)
        return BETA * kl(mu_s, logvar_s, mu_t, logvar_t) - expected
    held, unit = mu_s.detach(), torch.zeros_like(mu_s)
    fits = log_normal(mu_t, held, logvar_s)
    if likelihood == "predictive":
        fits = fits + log_normal(mu_t, mu_s, unit)
    else:
        fits = fits + implied(log_normal(mu_s[:, None], mu_t[None], logvar_t[None]) / TEMPERATURE)
    return BETA * (kl(mu_s, unit, mu_t, unit) + kl(held, logvar_s, mu_t, logvar_t)) - fits


def cosine_term(likelihood, mu_s, logvar_s, mu_t, logvar_t, noise):
    to_sphere = math.sqrt(D) * F.normalize(mu_s, dim=1)
    cosine = F.cosine_similarity(mu_s, mu_t)
    spread = kl(torch.zeros_like(mu_s), logvar_s, torch.zeros_like(mu_t), logvar_t)
    divergence = KAPPA * (1 - cosine) + spread
    if likelihood == "prior":
        return BETA * divergence - KAPPA * F.cosine_similarity(to_sphere + (logvar_s / 2).exp() * noise, mu_t)
    fits = log_normal(math.sqrt(D) * F.normalize(mu_t, dim=1), to_sphere.detach(), logvar_s)
    if likelihood == "predictive":
        return BETA * divergence - fits - KAPPA * cosine
    return BETA * divergence - fits - implied(F.cosine_similarity(mu_s[:, None], mu_t[None], dim=2) / TEMPERATURE)


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("likelihood", ["prior", "predictive", "implied"])
@pytest.mark.parametrize(("form", "term"), [("gaussian", gaussian_term), ("cosine", cosine_term)])
def test_vssl(form, term, likelihood, counts):
    settings = {"form": form, "likelihood": likelihood, "beta": BETA, "kappa": KAPPA, "temperature": TEMPERATURE}
    options = VSSLOptions(projector_hidden=4, predictor_hidden=4, latent=D, **settings)
    method = VSSL(options, torch.nn.Flatten(), 3, views=counts)
    views = counts.full + counts.local
    student = Gaussian(draw(views, 0).requires_grad_(), draw(views, 1).requires_grad_())
    teacher, noise = Gaussian(draw(counts.full, 2), draw(counts.full, 3)), draw(views, 4)

    def of_pair(s, t):
        ours, theirs = ([split(part)[view] for part in side] for side, view in ((student, s), (teacher, t)))
        return term(likelihood, *ours, *theirs, split(noise)[s]).mean()

    found = method.loss(student, teacher, noise)
    assert_equal_with_gradients(found["loss"], 2 * over_pairs(counts, of_pair), *student)
    # The parts that are logged add up to the loss.
    assert (2 * (BETA * found["kl"] - found["log_likelihood"])).item() == pytest.approx(found["loss"].item(), rel=1e-4)
