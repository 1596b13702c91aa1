"""The objectives' formulas against torch.distributions and by-hand references, in value and gradient."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from vssl.methods import BYOL, MoCoV3, ObjectiveConfig, build_objective
from vssl.methods.vssl import (
    cosine_kl,
    cosine_log_likelihood,
    gaussian_kl,
    gaussian_log_likelihood,
    predictive_log_likelihood,
)

B, D = 6, 10


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, D, generator=generator, requires_grad=True) for _ in range(4)]


def assert_same_value_and_gradient(ours, reference, inputs):
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad(ours.sum(), inputs, retain_graph=True, allow_unused=True),
        torch.autograd.grad(reference.sum(), inputs, retain_graph=True, allow_unused=True),
        strict=True,
    ):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def normal(mu, logvar):
    return Normal(mu, (0.5 * logvar).exp())


def test_gaussian_kl_is_that_of_torch_distributions(tensors):
    mu_q, logvar_q, mu_p, logvar_p = tensors
    reference = kl_divergence(normal(mu_q, logvar_q), normal(mu_p, logvar_p)).sum(dim=1)
    assert_same_value_and_gradient(gaussian_kl(*tensors), reference, tensors)


def test_gaussian_log_likelihood_is_minus_the_cross_entropy(tensors):
    mu_q, logvar_q, mu_p, logvar_p = tensors
    q, p = normal(mu_q, logvar_q), normal(mu_p, logvar_p)
    reference = -(kl_divergence(q, p) + q.entropy()).sum(dim=1)
    assert_same_value_and_gradient(gaussian_log_likelihood(*tensors), reference, tensors)


def test_gaussian_log_likelihood_is_the_mean_over_samples(tensors):
    mu_q, logvar_q, mu_p, logvar_p = (t.detach().double() for t in tensors)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(20_000, B, D, generator=generator, dtype=torch.float64)
    samples = mu_q + (0.5 * logvar_q).exp() * noise
    draws = normal(mu_p, logvar_p).log_prob(samples).sum(dim=2)
    error = 5 * draws.std(dim=0) / math.sqrt(len(draws))
    assert ((draws.mean(dim=0) - gaussian_log_likelihood(mu_q, logvar_q, mu_p, logvar_p)).abs() < error).all()


def test_predictive_log_likelihood_is_the_students_density_at_the_teachers_mean(tensors):
    mu_q, logvar_q, mu_p, _ = tensors
    reference = normal(mu_q, logvar_q).log_prob(mu_p).sum(dim=1)
    assert_same_value_and_gradient(predictive_log_likelihood(mu_q, logvar_q, mu_p), reference, tensors[:3])


def test_cosine_kl_is_the_gaussian_kl_of_unit_means_with_cosine_distances(tensors):
    mu_q, logvar_q, mu_p, logvar_p = tensors
    kappa = 3.0
    variances = kl_divergence(normal(mu_q * 0, logvar_q), normal(mu_p * 0, logvar_p)).sum(dim=1) / D
    squared = (F.normalize(mu_q, dim=1) - F.normalize(mu_p, dim=1)).square().sum(dim=1)
    reference = kappa * squared / 2 + variances
    assert_same_value_and_gradient(cosine_kl(*tensors, kappa), reference, tensors)


def test_cosine_log_likelihood_is_kappa_times_the_cosine(tensors):
    z, _, mu_p, _ = tensors
    reference = 3.0 * (z * mu_p).sum(dim=1) / (z.norm(dim=1) * mu_p.norm(dim=1))
    assert_same_value_and_gradient(cosine_log_likelihood(z, mu_p, 3.0), reference, [z, mu_p])


@pytest.mark.parametrize("kl", [gaussian_kl, lambda *a: cosine_kl(*a, 2.0)])
def test_a_kl_is_positive_and_zero_only_for_equal_distributions(kl, tensors):
    mu_q, logvar_q, mu_p, logvar_p = tensors
    assert (kl(mu_q, logvar_q, mu_p, logvar_p) > 0).all()
    torch.testing.assert_close(kl(mu_q, logvar_q, mu_q, logvar_q), torch.zeros(B), atol=1e-6, rtol=0)


def vssl(**settings):
    return build_objective(ObjectiveConfig(**settings), logvar_bound=2.0)


def pair(seed=0):
    """Student's and teacher's (mean, log-variance) [2B, D], the student's with gradients."""
    generator = torch.Generator().manual_seed(seed)
    student = tuple(torch.randn(2 * B, D, generator=generator).requires_grad_() for _ in range(2))
    teacher = tuple(torch.randn(2 * B, D, generator=generator) for _ in range(2))
    return student, teacher


def test_vssl_sums_both_directions_and_crosses_the_views():
    (mu_s, logvar_s), (mu_t, logvar_t) = pair()
    loss = vssl(form="gaussian", likelihood="prior", beta=0.7)((mu_s, logvar_s), (mu_t, logvar_t), None)["loss"]

    def direction(student, teacher):
        args = (mu_s[student], logvar_s[student], mu_t[teacher], logvar_t[teacher])
        return ((0.7 * gaussian_kl(*args) - gaussian_log_likelihood(*args)) / D).mean()

    first, second = slice(0, B), slice(B, 2 * B)
    torch.testing.assert_close(loss, direction(second, first) + direction(first, second))


def test_cosine_form_samples_around_the_students_direction():
    (mu_s, logvar_s), (mu_t, logvar_t) = pair()
    noise = torch.randn(2 * B, D, generator=torch.Generator().manual_seed(9))
    loss = vssl(form="cosine", likelihood="prior", kappa=3.0)((mu_s, logvar_s), (mu_t, logvar_t), noise)["loss"]
    mu_t, logvar_t = (torch.cat([t[B:], t[:B]]) for t in (mu_t, logvar_t))
    z = math.sqrt(D) * F.normalize(mu_s, dim=1) + (0.5 * logvar_s).exp() * noise
    reference = cosine_kl(mu_s, logvar_s, mu_t, logvar_t, 3.0) - cosine_log_likelihood(z, mu_t, 3.0)
    torch.testing.assert_close(loss, 2 * reference.mean())


FORMS = [{"form": f, "likelihood": k} for f in ("gaussian", "cosine") for k in ("prior", "predictive")]


@pytest.mark.parametrize("settings", [*FORMS, {"form": "gaussian", "decoupled": False}], ids=str)
def test_gradients_reach_the_students_mean_and_variance_but_never_the_teacher(settings):
    student, teacher = pair()
    teacher = tuple(t.requires_grad_() for t in teacher)
    objective = vssl(**settings)
    noise = torch.randn(2 * B, D) if objective.needs_noise else None
    outputs = objective(student, teacher, noise)
    outputs["loss"].backward()
    assert all(t.grad.abs().sum() > 0 for t in student)
    assert all(t.grad is None for t in teacher)
    assert all(not v.requires_grad and v.ndim == 0 for k, v in outputs.items() if k != "loss")


def fixed_point(settings, squared_error):
    """Log-variances (student, teacher) where training ends when means differ by ``squared_error`` and the teacher's
    variance follows the student's."""
    torch.manual_seed(0)
    mu_t = torch.randn(128, D)
    mu_s = mu_t + squared_error**0.5 * torch.randn(128, D)
    raw = torch.zeros(D, requires_grad=True)
    followed = torch.zeros(D)
    objective = vssl(**settings)
    optimizer = torch.optim.SGD([raw], lr=1.0)
    for _ in range(1000):
        optimizer.zero_grad()
        logvar = raw.expand(128, D)
        outputs = objective((mu_s, logvar), (mu_t.roll(64, 0), followed.expand(128, D)), None)
        outputs["loss"].backward()
        optimizer.step()
        followed = torch.lerp(followed, raw.detach(), 0.05)
    return raw.detach().mean().item(), followed.mean().item()


@pytest.mark.parametrize("beta", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("decoupled", [True, False])
def test_predictive_variance_settles_at_the_squared_error_for_every_beta(beta, decoupled):
    settings = {"form": "gaussian", "likelihood": "predictive", "beta": beta, "decoupled": decoupled}
    student, teacher = fixed_point(settings, squared_error=0.3)
    assert student == pytest.approx(math.log(0.3), abs=0.1)
    assert teacher == pytest.approx(math.log(0.3), abs=0.1)


def test_prior_variance_falls_for_ever():
    """The least of prior + beta KL lies at sigma_s^2 = sigma_t^2 beta / (1 + beta), and the teacher follows."""
    student, teacher = fixed_point({"form": "gaussian", "likelihood": "prior"}, squared_error=0.3)
    assert student < -5 and teacher < -5


def test_decoupling_makes_the_means_gradient_independent_of_the_variances():
    (mu_s, logvar_s), (mu_t, logvar_t) = pair()
    objective = vssl(form="gaussian", likelihood="predictive", decoupled=True, beta=0.5)
    gradients = []
    for shift in (0.0, 1.0):
        loss = objective((mu_s, logvar_s + shift), (mu_t, logvar_t - shift), None)["loss"]
        gradients.append(torch.autograd.grad(loss, mu_s)[0])
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(gradients[0], 1.5 * 2 * (mu_s - torch.cat([mu_t[B:], mu_t[:B]])) / (D * 2 * B))


def test_byol_is_the_squared_distance_of_unit_vectors_summed_over_directions():
    (p, _), (z, _) = pair()
    u, v = F.normalize(p, dim=1), F.normalize(z, dim=1)
    reference = sum((a - b).square().sum(dim=1).mean() for a, b in ((u[:B], v[B:]), (u[B:], v[:B])))
    assert_same_value_and_gradient(BYOL()((p, None), (z, None), None)["loss"], reference, [p])


def test_moco_v3_is_info_nce_times_two_temperatures_summed_over_directions():
    (q, _), (k, _) = pair()
    u, v = F.normalize(q, dim=1), F.normalize(k, dim=1)
    reference = 0.0
    for a, b in ((u[:B], v[B:]), (u[B:], v[:B])):
        similarity = (a @ b.T / 0.2).exp()
        reference = reference - 2 * 0.2 * (similarity.diagonal() / similarity.sum(dim=1)).log().mean()
    assert_same_value_and_gradient(MoCoV3(0.2)((q, None), (k, None), None)["loss"], reference, [q])


@pytest.mark.parametrize("settings", [{"name": "byol"}, {"name": "moco_v3"}, *FORMS], ids=str)
def test_statistics_are_float32_under_bf16(settings):
    student, teacher = pair()
    objective = build_objective(ObjectiveConfig(**settings), 2.0)
    noise = torch.randn(2 * B, D) if objective.needs_noise else None
    half = objective(tuple(t.bfloat16() for t in student), tuple(t.bfloat16() for t in teacher), noise)
    full = objective(tuple(t.bfloat16().float() for t in student), tuple(t.bfloat16().float() for t in teacher), noise)
    assert half["loss"].dtype == torch.float32
    torch.testing.assert_close(half["loss"], full["loss"])
