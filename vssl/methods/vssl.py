"""VSSL: a student posterior from one view, a teacher prior from the other, cross-view denoising as the likelihood.

Yavuz and Yanikoglu, Variational Self-Supervised Learning, arXiv 2504.04318. The paper's abstract names the Gaussian
and the cosine terms; its equations were not public to us, so the exact forms below are our derivation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.batch import Views
from pipelines.options import option
from pipelines.rng import normal
from vssl.collectives import Peers
from vssl.methods.base import Keys, Method, Output, PredictorOptions, Recipe
from vssl.methods.byol import BYOL
from vssl.methods.pairs import ViewCounts, mean_over_pairs, pair_rows, pair_with_each_teacher
from vssl.models.ema import Teacher
from vssl.models.encoder import Encoder
from vssl.models.heads import Gaussian, GaussianHead, mlp

__all__ = [
    "VSSL",
    "VSSLOptions",
    "cosine",
    "cosine_kl",
    "cosine_log_likelihood",
    "gaussian_kl",
    "gaussian_log_likelihood",
    "implied_gaussian_log_likelihood",
    "implied_log_likelihood",
    "on_sphere",
    "predictive_log_likelihood",
]

_ALONE = Peers()
_NOISE_STREAM = 1000  # plus a view's number: of the counter-based random numbers; lower streams belong to the views


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


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of the rows of a and b, float32 [B, D]: [B].

    ``F.cosine_similarity`` and ``F.normalize``, which the loss also uses, bound small norms by different constants, and
    Triton 3.6 (of PyTorch 2.11) cannot compile a kernel that bounds one norm twice.
    """
    return (F.normalize(a, dim=1) * F.normalize(b, dim=1)).sum(dim=1)


def cosine_kl(mu_q: Tensor, logvar_q: Tensor, mu_p: Tensor, logvar_p: Tensor, kappa: float) -> Tensor:
    """The Gaussian KL with the squared distance of the means replaced by a cosine distance.

    kappa (1 - cos(mu_q, mu_p)) + 1 / (2 D) sum_d [r - log r - 1],  r = sigma_q^2 / sigma_p^2

    For unit vectors |u - v|^2 = 2 (1 - cos). kappa and 1/D are our weights: this is not an exact KL of two von
    Mises-Fisher distributions. All tensors float32 [B, D]; returns [B], >= 0.
    """
    log_ratio = logvar_q - logvar_p
    spread = 0.5 * (log_ratio.exp() - log_ratio - 1.0).mean(dim=1)
    return kappa * (1.0 - cosine(mu_q, mu_p)) + spread


def cosine_log_likelihood(z: Tensor, mu_p: Tensor, kappa: float) -> Tensor:
    """Log-likelihood of a direction under concentration ``kappa``, up to a constant: kappa cos(z, mu_p).

    z, mu_p float32 [B, D]; returns [B], in [-kappa, kappa].
    """
    return kappa * cosine(z, mu_p)


def implied_log_likelihood(
    z: Tensor, mu_p: Tensor, temperature: float, *, leave_one_out: bool = False, peers: Peers = _ALONE
) -> Tensor:
    """log p(x_i | z_i) - log p(x_i), where the decoder is the one that the teacher's priors imply, on directions.

    Bayes' rule: p(x | z) = p(z | x) p(x) / p(z). With log p(z | x_j) = cos(z, mu_p[j]) / T + const and the mean of the
    batch's priors as the marginal p(z) (a VampPrior: Tomczak and Welling, arXiv 1705.07120), this is

    cos(z_i, mu_p[i]) / T - log 1/B sum_j exp(cos(z_i, mu_p[j]) / T)

    which is InfoNCE, read as a decoder (van den Oord et al., arXiv 1807.03748; Poole et al., arXiv 1905.06922).

    Args:
        z: float32 [n * B, D], n vectors of each image: row k * B + i belongs to image i.
        mu_p: float32 [B, D]; row i belongs to image i.
        temperature: T > 0, 1 / concentration of the priors.
        leave_one_out: the marginal is the mean over the other images, an unbiased estimate (the own image's prior, on
            which z depends, would bias it); the decoupled loss of Yeh et al., arXiv 2110.06848.
        peers: the priors of all processes are in the marginal.

    Returns:
        float32 [n * B]; at most log B without ``leave_one_out``.
    """
    cosines = F.normalize(z, dim=1) @ peers.gather(F.normalize(mu_p, dim=1)).T
    return _bayes(cosines / temperature, peers.own_rows(mu_p), leave_one_out)


def implied_gaussian_log_likelihood(
    z: Tensor,
    mu_p: Tensor,
    logvar_p: Tensor,
    temperature: float,
    *,
    leave_one_out: bool = False,
    peers: Peers = _ALONE,
) -> Tensor:
    """``implied_log_likelihood`` with Gaussian priors: log p(z | x_j) = log N(z; mu_p[j], sigma_p[j]^2) / (D T).

    Dividing by D tempers the density (Wenzel et al., arXiv 2002.02405); otherwise a few of hundreds of dimensions would
    dominate. With unit variances T then has the same meaning as for cosines. z float32 [n * B, D], mu_p and
    logvar_p float32 [B, D].
    """
    mu, logvar = peers.gather(mu_p), peers.gather(logvar_p)
    precision = (-logvar).exp()
    # sum_d (z - mu)^2 / sigma^2 as products of matrices: no [B, B, D].
    squares = z.square() @ precision.T - 2.0 * z @ (mu * precision).T + (mu.square() * precision).sum(dim=1)
    log_density = -0.5 * (math.log(2.0 * math.pi) + logvar.mean(dim=1) + squares / z.shape[1])
    return _bayes(log_density / temperature, peers.own_rows(mu_p), leave_one_out)


def _bayes(log_density: Tensor, own_rows: Tensor, leave_one_out: bool) -> Tensor:
    """log p(z_i | x_i) - log mean_j p(z_i | x_j), [n * B], from log p(z_i | x_j) [n * B, N]; the column of image i,
    whose rows are i, B + i, ..., is own_rows[i]."""
    own = own_rows.repeat(len(log_density) // len(own_rows))[:, None]
    log_own = log_density.gather(1, own)[:, 0]
    count = log_density.shape[1]
    if leave_one_out:
        log_density, count = log_density.scatter(1, own, -math.inf), count - 1
    return log_own - (log_density.logsumexp(dim=1) - math.log(count))


def on_sphere(mean: Tensor) -> Tensor:
    """Means [B, D] scaled to length sqrt(D): each dimension then has a mean square of about 1, as if standardised."""
    return math.sqrt(mean.shape[1]) * F.normalize(mean, dim=1)


@dataclass(frozen=True)
class VSSLOptions(PredictorOptions):
    name: Literal["vssl"] = option("vssl", "which method")
    predictor: bool = option(False, "use a predictor; without one, the prediction is the projector's output")
    form: Literal["cosine", "gaussian"] = option(
        "cosine", "gaussian: closed forms, divided by D; cosine: cosine distances instead of squared distances of means"
    )
    likelihood: Literal["prior", "predictive", "implied"] = option(
        "implied",
        "implied: of the image under the decoder that the teacher's priors imply by Bayes' rule (contrasts a batch); "
        "predictive: of the teacher's mean under the student's density (the variance converges to the squared error); "
        "prior: of the student's posterior under the teacher's prior (the variance falls to its bound)",
    )
    temperature: float = option(0.1, "T, implied likelihood: temperature of the priors", low=1e-6)
    leave_one_out: bool = option(True, "implied likelihood: an image's own prior is not part of its marginal")
    beta: float = option(1.0, "weight of the KL", low=0.0)
    kappa: float = option(0.5, "cosine form: concentration (weight of the cosine distance)", low=0.0)
    logvar_bound: float = option(2.0, "log-variances lie in (-bound, bound)", low=1e-3, high=20.0)


class VSSL(Method):
    """-E_q[log p(x1 | z)] + beta KL(q || p), mean over pairs of views, times 2: of two views both directions, summed.

    A predictor, if there is one, changes only the mean. The variance comes from the encoder itself: this trains the
    encoder's variance head and, through the moving average, the teacher's. Both heads (encoder's
    mean and predictor) end in a BatchNorm without affine parameters.

    ``likelihood``, ``implied``: the image's likelihood under the decoder that the teacher's priors imply, at the
    student's mean; the student's variance is trained as under ``predictive``. ``predictive``: the teacher's mean
    under the student's density, whose variance has the fixed point sigma_s^2 = sigma_t^2 = squared error, for every
    beta. ``prior``: the expected log-density of the teacher's prior under the student's posterior (in the cosine
    form: of a sample of it); the optimum of the student's variance is its bound.

    Gaussian form, ``implied`` and ``predictive``: means get the gradient of unit variances, variances the gradient of
    fixed means (stop-gradient). Otherwise a large variance would slow down learning of its mean (Seitzer et al.,
    arXiv 2203.09168, with a milder remedy). The fixed points stay the same. In the cosine form the means' gradient
    never depends on the student's variance.
    """

    Options = VSSLOptions
    teacher: Teacher

    @classmethod
    def recipe(cls, options: Any, *, small_images: bool) -> Recipe:
        """BYOL's recipe: the two methods differ only in the objective."""
        return BYOL.recipe(options, small_images=small_images)

    def build(self, backbone: nn.Module, width: int) -> None:
        options = self.options
        projector = GaussianHead(width, options.projector_hidden, options.latent, options.logvar_bound)
        self.student = Encoder(backbone, projector)
        self.add_predictors(
            lambda: (
                mlp(options.latent, options.predictor_hidden, options.latent, standardise=True)
                if options.predictor
                else nn.Identity()
            )
        )
        self.teacher = Teacher(self.student)
        if options.likelihood == "implied":
            self.micro_batch = "an image's marginal is over the other images of its micro-batch alone"

    def forward(self, views: Views, keys: Keys) -> Output:
        """The loss; the metrics are those of ``loss``."""
        with self.autocast():
            _, prior = self.teacher(views.full)
            features, embeddings = self.encode(views)
            means = self.apply_predictors([part.mean for part in embeddings])
        posterior = Gaussian(means, torch.cat([part.logvar for part in embeddings]))
        metrics = self.loss(posterior, prior, self._noise(keys))
        return Output(metrics.pop("loss"), features, metrics)

    @property
    def needs_noise(self) -> bool:
        """Whether the loss draws a sample of the posterior; closed forms do not."""
        return self.options.form == "cosine" and self.options.likelihood == "prior"

    def _noise(self, keys: Keys) -> Tensor | None:
        """Standard normal numbers float32 [(V + L) * B, D], a function of (seed, epoch, image, view); None if not
        needed."""
        if not self.needs_noise:
            return None
        streams = _NOISE_STREAM + keys.view
        rows = (normal(keys.seed, keys.epoch, keys.index, stream, self.options.latent) for stream in streams)
        return torch.cat(list(rows))

    def loss(self, posterior: Gaussian, prior: Gaussian, noise: Tensor | None = None) -> dict[str, Tensor]:
        """The loss for the student's posteriors [(V + L) * B, D] and the teacher's priors [V * B, D], view after view.

        Args:
            noise: standard normal [(V + L) * B, D] if ``needs_noise``.

        Returns:
            ``loss`` (scalar, mean over images and pairs, times 2) and detached scalars: ``kl`` and ``log_likelihood``
            (means over images and pairs, as in the loss), ``logvar_student``, ``logvar_teacher`` (means), ``on_bound``
            (share of the student's log-variances within 2 % of their bound), ``cosine`` (of the student's and the
            teacher's means).
        """
        student, teacher = Gaussian(*(p.float() for p in posterior)), Gaussian(*(p.detach().float() for p in prior))
        terms = self._gaussian if self.options.form == "gaussian" else self._cosine
        log_likelihood, kl = terms(student, teacher, noise)
        loss = 2.0 * mean_over_pairs(self.views, self.options.beta * kl - log_likelihood)
        with torch.no_grad():
            return {
                "loss": loss,
                "kl": mean_over_pairs(self.views, kl),
                "log_likelihood": mean_over_pairs(self.views, log_likelihood),
                "logvar_student": student.logvar.mean(),
                "logvar_teacher": teacher.logvar.mean(),
                "on_bound": (student.logvar.abs() > 0.98 * self.options.logvar_bound).float().mean(),
                "cosine": cosine(*pair_rows(self.views, student.mean, teacher.mean)).mean(),
            }

    def _gaussian(self, student: Gaussian, teacher: Gaussian, _: None) -> tuple[Tensor, Tensor]:
        """Log-likelihood and KL per dimension of every pair, [P * B] each."""
        (mu_s, mu_t), (logvar_s, logvar_t) = self._pair(student, teacher)
        dimensions = mu_s.shape[1]
        if self.options.likelihood == "prior":
            log_likelihood = gaussian_log_likelihood(mu_s, logvar_s, mu_t, logvar_t)
            kl = gaussian_kl(mu_s, logvar_s, mu_t, logvar_t)
        else:
            unit, held = torch.zeros_like(logvar_s), mu_s.detach()
            log_likelihood = predictive_log_likelihood(held, logvar_s, mu_t)
            if self.options.likelihood == "predictive":
                log_likelihood = log_likelihood + predictive_log_likelihood(mu_s, unit, mu_t)
            kl = gaussian_kl(mu_s, unit, mu_t, unit) + gaussian_kl(held, logvar_s, mu_t, logvar_t)
        log_likelihood, kl = log_likelihood / dimensions, kl / dimensions
        if self.options.likelihood == "implied":
            log_likelihood = log_likelihood + self._implied(implied_gaussian_log_likelihood, student.mean, *teacher)
        return log_likelihood, kl

    def _cosine(self, student: Gaussian, teacher: Gaussian, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-likelihood and KL of every pair, [P * B] each."""
        (mu_s, mu_t), (logvar_s, logvar_t) = self._pair(student, teacher)
        kappa, direction = self.options.kappa, on_sphere(mu_s)
        if self.options.likelihood == "prior":
            noise, _ = pair_rows(self.views, noise, teacher.mean)
            log_likelihood = cosine_log_likelihood(direction + (0.5 * logvar_s).exp() * noise, mu_t, kappa)
        else:
            density = predictive_log_likelihood(direction.detach(), logvar_s, on_sphere(mu_t)) / mu_s.shape[1]
            if self.options.likelihood == "implied":
                log_likelihood = self._implied(implied_log_likelihood, student.mean, teacher.mean) + density
            else:
                log_likelihood = cosine_log_likelihood(mu_s, mu_t, kappa) + density
        return log_likelihood, cosine_kl(mu_s, logvar_s, mu_t, logvar_t, kappa)

    def _pair(self, student: Gaussian, teacher: Gaussian) -> list[tuple[Tensor, Tensor]]:
        """Means of student and teacher, then their log-variances: the rows of every pair, [P * B, D] each."""
        return [pair_rows(self.views, ours, theirs) for ours, theirs in zip(student, teacher, strict=True)]

    def _implied(self, log_likelihood: Callable[..., Tensor], means: Tensor, *prior: Tensor) -> Tensor:
        """An implied log-likelihood of every pair, [P * B], of the student's means and the teacher's priors."""
        options = {"leave_one_out": self.options.leave_one_out, "peers": self.peers}

        def compute(z: Tensor, *of_view: Tensor) -> Tensor:
            return log_likelihood(z, *of_view, self.options.temperature, **options)

        return torch.cat(pair_with_each_teacher(self.views, compute, means, *prior))

    @torch.no_grad()
    def posterior(self, features: Tensor) -> Gaussian:
        """Mean and log-variance [N, D] of the student's Gaussian head for the backbone's features [N, F].

        The predictor is not used: it only predicts the teacher's embedding of another view. The variances of the cosine
        form refer to means of length sqrt(D); its means are scaled to this length.
        """
        mean, logvar = self.student.projector(features)
        return Gaussian(on_sphere(mean) if self.options.form == "cosine" else mean, logvar)

    @torch.no_grad()
    def predict(self, views: Tensor) -> tuple[Gaussian, Tensor]:
        """As ``Method.predict``; the means of the cosine form have length sqrt(D), as in the loss."""
        _, (mean, logvar) = self.student(views)
        counts = ViewCounts(self.views.full)
        mean, target = pair_rows(counts, self.predictor(mean), self.teacher(views)[1].mean)
        logvar, _ = pair_rows(counts, logvar, logvar)
        if self.options.form == "cosine":
            mean, target = on_sphere(mean), on_sphere(target)
        return Gaussian(mean, logvar), target
