"""VSSL: a student posterior from one view, a teacher prior from the other, cross-view denoising for the likelihood.

Yavuz and Yanikoglu, Variational Self-Supervised Learning, arXiv 2504.04318. The paper's abstract names the Gaussian
and the cosine terms; its equations were not public to us, so the exact forms below are our derivation.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "VSSL",
    "cosine_kl",
    "cosine_log_likelihood",
    "gaussian_kl",
    "gaussian_log_likelihood",
    "predictive_log_likelihood",
]


def gaussian_kl(mu_q: Tensor, logvar_q: Tensor, mu_p: Tensor, logvar_p: Tensor) -> Tensor:
    """KL(q || p) of two diagonal Gaussians, in nats.

    1/2 sum_d [log(sigma_p^2 / sigma_q^2) + (sigma_q^2 + (mu_q - mu_p)^2) / sigma_p^2 - 1]
    (Kingma and Welling, arXiv 1312.6114, appendix B, for a general prior).

    All arguments float32 [B, D]; returns [B], >= 0.
    """
    ratio = (logvar_q - logvar_p).exp()
    distance = (mu_q - mu_p).square() * (-logvar_p).exp()
    return 0.5 * (logvar_p - logvar_q + ratio + distance - 1.0).sum(dim=1)


def gaussian_log_likelihood(mu_q: Tensor, logvar_q: Tensor, mu_p: Tensor, logvar_p: Tensor) -> Tensor:
    """E_{z ~ q}[log p(z)] of two diagonal Gaussians, in closed form, in nats.

    -1/2 sum_d [log(2 pi sigma_p^2) + (sigma_q^2 + (mu_q - mu_p)^2) / sigma_p^2]

    All arguments float32 [B, D]; returns [B].
    """
    expected_square = logvar_q.exp() + (mu_q - mu_p).square()
    return -0.5 * (math.log(2.0 * math.pi) + logvar_p + expected_square * (-logvar_p).exp()).sum(dim=1)


def predictive_log_likelihood(mu_q: Tensor, logvar_q: Tensor, mu_p: Tensor) -> Tensor:
    """log N(mu_p; mu_q, sigma_q^2): the teacher's mean under the student's own density, in nats.

    -1/2 sum_d [log(2 pi sigma_q^2) + (mu_q - mu_p)^2 / sigma_q^2]

    All arguments float32 [B, D]; returns [B].
    """
    distance = (mu_q - mu_p).square() * (-logvar_q).exp()
    return -0.5 * (math.log(2.0 * math.pi) + logvar_q + distance).sum(dim=1)


def cosine_kl(mu_q: Tensor, logvar_q: Tensor, mu_p: Tensor, logvar_p: Tensor, kappa: float) -> Tensor:
    """The Gaussian KL with its squared distance of means turned into a cosine distance.

    kappa (1 - cos(mu_q, mu_p)) + 1 / (2 D) sum_d [r - log r - 1],  r = sigma_q^2 / sigma_p^2

    For unit vectors |u - v|^2 = 2 (1 - cos). kappa and 1/D are our weights: this is no exact KL of a von Mises-Fisher
    law. All tensors float32 [B, D]; returns [B], >= 0.
    """
    log_ratio = logvar_q - logvar_p
    spread = 0.5 * (log_ratio.exp() - log_ratio - 1.0).mean(dim=1)
    return kappa * (1.0 - F.cosine_similarity(mu_q, mu_p, dim=1)) + spread


def cosine_log_likelihood(z: Tensor, mu_p: Tensor, kappa: float) -> Tensor:
    """log-likelihood of a direction under concentration ``kappa``, up to a constant: kappa cos(z, mu_p).

    z, mu_p float32 [B, D]; returns [B], in [-kappa, kappa].
    """
    return kappa * F.cosine_similarity(z, mu_p, dim=1)


def _on_sphere(mean: Tensor) -> Tensor:
    """Scaled to length sqrt(D), so that a dimension's variance is about 1, as after standardisation."""
    return math.sqrt(mean.shape[1]) * F.normalize(mean, dim=1)


class VSSL(nn.Module):
    """-E_q[log p(x1 | z)] + beta KL(q || p) for both directions, summed.

    Args:
        form: ``gaussian``: closed forms, divided by D. ``cosine``: squared distances become cosine distances.
        likelihood: ``prior``: the expected log-density of the teacher's prior under the student's posterior (in the
            cosine form: of a sample of it). The student's variance has no optimum but its bound. ``predictive``: the
            teacher's mean under the student's density, whose variance has the fixed point
            sigma_s^2 = sigma_t^2 = squared error, for every beta.
        beta: weight of the KL.
        kappa: concentration of the cosine form.
        decoupled: for ``predictive`` in the Gaussian form: means learn as under unit variances, variances as with the
            means held (stop-gradient), so that no sample's or dimension's uncertainty damps the learning of its mean.
            The fixed points stay. (The damping and a milder cure: Seitzer et al., arXiv 2203.09168.) The cosine form's
            means never meet a variance, so there it changes nothing.
        logvar_bound: only to report how many log-variances sit on it.
    """

    def __init__(
        self,
        form: Literal["cosine", "gaussian"],
        likelihood: Literal["prior", "predictive"],
        beta: float,
        kappa: float,
        decoupled: bool,
        logvar_bound: float,
    ) -> None:
        super().__init__()
        self.form, self.likelihood, self.decoupled = form, likelihood, decoupled
        self.beta, self.kappa, self.logvar_bound = beta, kappa, logvar_bound

    @property
    def needs_noise(self) -> bool:
        """Whether a sample of the posterior is drawn: the closed forms need none."""
        return self.form == "cosine" and self.likelihood == "prior"

    def forward(self, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], noise: Tensor | None) -> dict:
        """student, teacher: (mean, log-variance) [2B, D], the first B rows view 1. noise: standard normal [2B, D].

        Returns ``loss`` (scalar, mean over B, both directions summed) and detached scalars: ``kl`` and
        ``log_likelihood`` (a direction's mean, as the loss holds them), ``logvar_student``, ``logvar_teacher``
        (means), ``on_bound`` (share of the student's log-variances within 2 % of their bound), ``cosine`` (of the
        student's and the teacher's means).
        """
        mu_s, logvar_s = student[0].float(), student[1].float()
        # Row i of a student's view meets the same image's other view of the teacher.
        mu_t, logvar_t = (torch.cat(part.detach().float().chunk(2)[::-1]) for part in teacher)
        terms = self._gaussian if self.form == "gaussian" else self._cosine
        log_likelihood, kl = terms(mu_s, logvar_s, mu_t, logvar_t, noise)
        loss = 2.0 * (self.beta * kl - log_likelihood).mean()
        with torch.no_grad():
            return {
                "loss": loss,
                "kl": kl.mean(),
                "log_likelihood": log_likelihood.mean(),
                "logvar_student": logvar_s.mean(),
                "logvar_teacher": logvar_t.mean(),
                "on_bound": (logvar_s.abs() > 0.98 * self.logvar_bound).float().mean(),
                "cosine": F.cosine_similarity(mu_s, mu_t, dim=1).mean(),
            }

    def _gaussian(self, mu_s: Tensor, logvar_s: Tensor, mu_t: Tensor, logvar_t: Tensor, _: None) -> tuple:
        """Log-likelihood and KL, [2B] each, a dimension."""
        dimensions = mu_s.shape[1]
        if self.likelihood == "prior":
            log_likelihood = gaussian_log_likelihood(mu_s, logvar_s, mu_t, logvar_t)
            kl = gaussian_kl(mu_s, logvar_s, mu_t, logvar_t)
        elif self.decoupled:
            unit, held = torch.zeros_like(logvar_s), mu_s.detach()
            log_likelihood = predictive_log_likelihood(mu_s, unit, mu_t)
            log_likelihood = log_likelihood + predictive_log_likelihood(held, logvar_s, mu_t)
            kl = gaussian_kl(mu_s, unit, mu_t, unit) + gaussian_kl(held, logvar_s, mu_t, logvar_t)
        else:
            log_likelihood = predictive_log_likelihood(mu_s, logvar_s, mu_t)
            kl = gaussian_kl(mu_s, logvar_s, mu_t, logvar_t)
        return log_likelihood / dimensions, kl / dimensions

    def _cosine(self, mu_s: Tensor, logvar_s: Tensor, mu_t: Tensor, logvar_t: Tensor, noise: Tensor | None) -> tuple:
        """Log-likelihood and KL, [2B] each."""
        # On the sphere of radius sqrt(D) a dimension's variance is about 1, as after standardisation.
        radius = math.sqrt(mu_s.shape[1])
        direction = radius * F.normalize(mu_s, dim=1)
        if self.likelihood == "prior":
            log_likelihood = cosine_log_likelihood(direction + (0.5 * logvar_s).exp() * noise, mu_t, self.kappa)
        else:
            target = radius * F.normalize(mu_t, dim=1)
            density = predictive_log_likelihood(direction.detach(), logvar_s, target) / mu_s.shape[1]
            log_likelihood = cosine_log_likelihood(mu_s, mu_t, self.kappa) + density
        return log_likelihood, cosine_kl(mu_s, logvar_s, mu_t, logvar_t, self.kappa)
