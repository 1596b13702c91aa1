"""VSSL's formulas against torch.distributions and by-hand references, in value and gradient."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from support.formulas import B, D, assert_same_value_and_gradient
from support.views import keys, random_views
from vssl.methods.vssl import (
    VSSL,
    VSSLOptions,
    cosine_kl,
    cosine_log_likelihood,
    gaussian_kl,
    gaussian_log_likelihood,
    implied_gaussian_log_likelihood,
    implied_log_likelihood,
    predictive_log_likelihood,
)
from vssl.models.heads import Gaussian


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, D, generator=generator, requires_grad=True) for _ in range(4)]


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


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("form", ["cosine", "gaussian"])
def test_implied_log_likelihood_is_bayes_rule_with_the_batch_as_marginal(tensors, form, leave_one_out):
    z, mu_p, logvar_p, _ = tensors
    temperature, rows = 0.3, []
    for i in range(B):
        if form == "cosine":
            logs = [F.cosine_similarity(z[i], mu_p[j], dim=0) / temperature for j in range(B)]
        else:
            logs = [normal(mu_p[j], logvar_p[j]).log_prob(z[i]).sum() / (D * temperature) for j in range(B)]
        marginal = [logs[j] for j in range(B) if j != i or not leave_one_out]
        rows.append(logs[i] - torch.stack(marginal).exp().mean().log())
    if form == "cosine":
        inputs = [z, mu_p]
        ours = implied_log_likelihood(*inputs, temperature, leave_one_out=leave_one_out)
    else:
        inputs = [z, mu_p, logvar_p]
        ours = implied_gaussian_log_likelihood(*inputs, temperature, leave_one_out=leave_one_out)
    assert ours.shape == (B,)
    assert_same_value_and_gradient(ours, torch.stack(rows), inputs)


def test_the_implied_decoder_of_equal_priors_says_nothing(tensors):
    z, mu_p, logvar_p, _ = (t.detach() for t in tensors)
    same, spread = mu_p[:1].expand(B, D), logvar_p[:1].expand(B, D)
    for leave_one_out in (False, True):
        torch.testing.assert_close(implied_log_likelihood(z, same, 0.1, leave_one_out=leave_one_out), torch.zeros(B))
        said = implied_gaussian_log_likelihood(z, same, spread, 0.1, leave_one_out=leave_one_out)
        torch.testing.assert_close(said, torch.zeros(B), atol=1e-5, rtol=0)


def test_with_unit_variances_both_implied_decoders_have_the_same_temperature():
    z, mu_p = (math.sqrt(D) * F.normalize(torch.randn(B, D), dim=1) for _ in range(2))
    gaussian = implied_gaussian_log_likelihood(z, mu_p, torch.zeros(B, D), 0.2)
    torch.testing.assert_close(gaussian, implied_log_likelihood(z, mu_p, 0.2))


@pytest.mark.parametrize("kl", [gaussian_kl, lambda *a: cosine_kl(*a, 2.0)])
def test_a_kl_is_positive_and_zero_only_for_equal_distributions(kl, tensors):
    mu_q, logvar_q, mu_p, logvar_p = tensors
    assert (kl(mu_q, logvar_q, mu_p, logvar_p) > 0).all()
    torch.testing.assert_close(kl(mu_q, logvar_q, mu_q, logvar_q), torch.zeros(B), atol=1e-6, rtol=0)


def vssl(**settings):
    """VSSL's loss with these options; its network is never run."""
    options = VSSLOptions(projector_hidden=4, predictor_hidden=4, latent=D, **settings)
    return VSSL(options, nn.Flatten(), 3).loss


def pair(seed=0):
    """Student's and teacher's (mean, log-variance) [2B, D], the student's with gradients."""
    generator = torch.Generator().manual_seed(seed)
    student = Gaussian(*(torch.randn(2 * B, D, generator=generator).requires_grad_() for _ in range(2)))
    teacher = Gaussian(*(torch.randn(2 * B, D, generator=generator) for _ in range(2)))
    return student, teacher


def test_vssl_sums_both_directions_and_crosses_the_views():
    (mu_s, logvar_s), (mu_t, logvar_t) = pair()
    loss = vssl(form="gaussian", likelihood="prior", beta=0.7)(Gaussian(mu_s, logvar_s), Gaussian(mu_t, logvar_t))[
        "loss"
    ]

    def direction(student, teacher):
        args = (mu_s[student], logvar_s[student], mu_t[teacher], logvar_t[teacher])
        return ((0.7 * gaussian_kl(*args) - gaussian_log_likelihood(*args)) / D).mean()

    first, second = slice(0, B), slice(B, 2 * B)
    torch.testing.assert_close(loss, direction(second, first) + direction(first, second))


def test_cosine_form_samples_around_the_students_direction():
    (mu_s, logvar_s), (mu_t, logvar_t) = pair()
    noise = torch.randn(2 * B, D, generator=torch.Generator().manual_seed(9))
    loss = vssl(form="cosine", likelihood="prior", kappa=3.0)(
        Gaussian(mu_s, logvar_s), Gaussian(mu_t, logvar_t), noise
    )["loss"]
    mu_t, logvar_t = (torch.cat([t[B:], t[:B]]) for t in (mu_t, logvar_t))
    z = math.sqrt(D) * F.normalize(mu_s, dim=1) + (0.5 * logvar_s).exp() * noise
    reference = cosine_kl(mu_s, logvar_s, mu_t, logvar_t, 3.0) - cosine_log_likelihood(z, mu_t, 3.0)
    torch.testing.assert_close(loss, 2 * reference.mean())


FORMS = [{"form": f, "likelihood": k} for f in ("gaussian", "cosine") for k in ("prior", "predictive", "implied")]


@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_gradients_reach_the_students_mean_and_variance_but_never_the_teacher(settings):
    student, teacher = pair()
    teacher = Gaussian(*(t.requires_grad_() for t in teacher))
    outputs = vssl(**settings)(student, teacher, torch.randn(2 * B, D))
    outputs["loss"].backward()
    assert all(t.grad.abs().sum() > 0 for t in student)
    assert all(t.grad is None for t in teacher)
    assert all(not v.requires_grad and v.ndim == 0 for k, v in outputs.items() if k != "loss")


def fixed_point(settings, squared_error):
    """Log-variances (student, teacher) to which training converges if the means differ by ``squared_error`` and the
    teacher's variance follows the student's."""
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
        outputs = objective(Gaussian(mu_s, logvar), Gaussian(mu_t.roll(64, 0), followed.expand(128, D)))
        outputs["loss"].backward()
        optimizer.step()
        followed = torch.lerp(followed, raw.detach(), 0.05)
    return raw.detach().mean().item(), followed.mean().item()


@pytest.mark.parametrize("beta", [0.1, 1.0, 4.0])
def test_predictive_variance_settles_at_the_squared_error_for_every_beta(beta):
    settings = {"form": "gaussian", "likelihood": "predictive", "beta": beta}
    student, teacher = fixed_point(settings, squared_error=0.3)
    assert student == pytest.approx(math.log(0.3), abs=0.1)
    assert teacher == pytest.approx(math.log(0.3), abs=0.1)


def test_prior_variance_falls_without_bound():
    """The minimum of prior + beta KL is at sigma_s^2 = sigma_t^2 beta / (1 + beta), and the teacher follows it down."""
    student, teacher = fixed_point({"form": "gaussian", "likelihood": "prior"}, squared_error=0.3)
    assert student < -5 and teacher < -5


def test_the_gradient_of_gaussian_means_does_not_depend_on_the_variances():
    (mu_s, logvar_s), (mu_t, logvar_t) = pair()
    objective = vssl(form="gaussian", likelihood="predictive", beta=0.5)
    gradients = []
    for shift in (0.0, 1.0):
        loss = objective(Gaussian(mu_s, logvar_s + shift), Gaussian(mu_t, logvar_t - shift))["loss"]
        gradients.append(torch.autograd.grad(loss, mu_s)[0])
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(gradients[0], 1.5 * 2 * (mu_s - torch.cat([mu_t[B:], mu_t[:B]])) / (D * 2 * B))


@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_statistics_are_float32_under_bf16(settings):
    student, teacher = pair()
    half, full = (
        vssl(**settings)(Gaussian(*map(cast, student)), Gaussian(*map(cast, teacher)), torch.ones(2 * B, D))["loss"]
        for cast in (torch.Tensor.bfloat16, lambda t: t.bfloat16().float())
    )
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full)


def test_the_noise_depends_on_the_sample_and_the_view():
    torch.manual_seed(0)
    options = VSSLOptions(projector_hidden=8, predictor_hidden=8, latent=D, likelihood="prior")
    method = VSSL(options, nn.Flatten(), 3 * 4 * 4)
    views, index = random_views(B, side=4), torch.arange(B)
    first = method(views, keys(index, 1, seed=3)).loss
    assert torch.equal(method(views, keys(index, 1, seed=3, step=7)).loss, first)
    for other in (keys(index, 2, seed=3), keys(index + B, 1, seed=3), keys(index, 1, seed=4)):
        assert not torch.equal(method(views, other).loss, first)


def test_the_teachers_variance_head_is_trained():
    """The student's variance head, which the teacher's follows, receives a gradient."""
    method = VSSL(VSSLOptions(projector_hidden=8, predictor_hidden=8, latent=D), nn.Flatten(), 3 * 4 * 4)
    method(random_views(B, side=4), keys(torch.arange(B))).loss.backward()
    assert method.student.projector.logvar.weight.grad.abs().sum() > 0
