"""LeJEPA: every view predicts the mean embedding of the full views; all embeddings are Gaussian. No teacher.

Balestriero and LeCun, LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics, arXiv 2511.08544.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.batch import Views
from pipelines.inductor_hints import materialised
from pipelines.options import option
from pipelines.rng import normal
from vssl.collectives import Peers
from vssl.methods.base import Keys, Method, MethodOptions, Output, Recipe
from vssl.methods.pairs import ViewCounts, mean_over_views
from vssl.models.encoder import Encoder
from vssl.models.heads import mlp
from vssl.models.norm import BatchNorm1d

__all__ = ["LeJEPA", "LeJEPAOptions", "prediction_loss", "sigreg", "slices"]

_SLICE_STREAM = 3000  # of the counter-based random numbers
_ALONE = Peers()


def slices(keys: Keys, dimensions: int, count: int) -> Tensor:
    """``count`` random directions of a step, unit vectors float32 [dimensions, count]: the same on all processes."""
    # Materialised: Triton would compute an arange, and the hash of it, in 32 bits.
    number = materialised(torch.arange(count, device=keys.step.device))
    return F.normalize(normal(keys.seed, keys.step, number, _SLICE_STREAM, dimensions), dim=1).T


def sigreg(embeddings: Tensor, directions: Tensor, *, knots: int = 17, peers: Peers = _ALONE) -> Tensor:
    """Sketched Isotropic Gaussian Regularization: distance of embeddings from N(0, I) along random directions.

    The Epps-Pulley statistic of each direction a (section 4.3 and algorithm 1 of the paper), mean over directions:
    N int_{-5}^{5} |1/N sum_n exp(i t a.z_n) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt, by the trapezoidal rule.

    Args:
        embeddings: float32 [views, B, D]; each view is a sample of its own.
        directions: float32 [D, M], unit vectors.
        knots: points of the rule over [-5, 5], odd.
        peers: the embeddings of all processes are the sample.

    Returns:
        float32 [views], >= 0.
    """
    # The integrand is even: half of the points suffice, those in (0, 5] count twice.
    t = torch.linspace(0.0, 5.0, knots // 2 + 1, device=embeddings.device)
    window = torch.exp(-0.5 * t.square())
    angle = (embeddings @ directions)[..., None] * t  # [views, B, M, T]
    parts = peers.gather(torch.stack([angle.cos().mean(dim=1), angle.sin().mean(dim=1)])[None])  # [P, 2, views, M, T]
    real, imaginary = parts.mean(dim=0)
    error = ((real - window).square() + imaginary.square()) * window
    count = len(parts) * embeddings.shape[1]
    return 2.0 * count * torch.trapezoid(error, t, dim=2).mean(dim=1)


def prediction_loss(embeddings: Tensor, counts: ViewCounts) -> Tensor:
    """Mean squared distance per dimension of each view's embedding to the mean of the full views', mean over views: a
    scalar. embeddings: float32 [V + L, B, D], full views first. (Equation 6 of the paper.)"""
    centre = embeddings[: counts.full].mean(dim=0)
    return mean_over_views(counts, (embeddings - centre).square().mean(dim=(1, 2)))


@dataclass(frozen=True)
class LeJEPAOptions(MethodOptions):
    name: Literal["lejepa"] = option("lejepa", "which method")
    sigreg_weight: float = option(
        0.05, "lambda: the loss is (1 - lambda) prediction + lambda SIGReg", low=0.0, high=1.0
    )
    slices: int = option(256, "number of random directions per step", low=1)
    projector_norm: Literal["batch", "layer"] = option(
        "batch", "norm of the projector's hidden layers; layer: nothing depends on the other images of a batch"
    )


class LeJEPA(Method):
    """Backbone and a projector of three layers; no teacher, no predictor, no stop-gradient."""

    Options = LeJEPAOptions
    micro_batch = "the distribution that is compared with a Gaussian is that of a micro-batch"

    @classmethod
    def recipe(cls, options: Any, *, small_images: bool) -> Recipe:
        """Two full and six local views, AdamW, a narrow embedding. Rate and decay lie in the range that the paper
        recommends; they are not tuned here."""
        widths = {"latent": 64, "projector_hidden": 2048}
        augment = {"local_views": 6, "local_scale": (0.05, 0.3)}
        return Recipe("adamw", 5e-4, 5e-2, widths, augment)

    def build(self, backbone: nn.Module, width: int) -> None:
        options = self.options
        norm = BatchNorm1d if options.projector_norm == "batch" else nn.LayerNorm
        projector = mlp(width, options.projector_hidden, options.latent, layers=3, norm=norm)
        self.student = Encoder(backbone, projector)

    def forward(self, views: Views, keys: Keys) -> Output:
        """The loss; metrics: ``prediction`` and ``sigreg``, not weighted."""
        with self.autocast():
            features, parts = self.encode(views)
        embeddings = torch.cat(parts).float().unflatten(0, (self.views.full + self.views.local, -1))
        prediction = prediction_loss(embeddings, self.views)
        directions = slices(keys, embeddings.shape[2], self.options.slices)
        regularization = mean_over_views(self.views, sigreg(embeddings, directions, peers=self.peers))
        weight = self.options.sigreg_weight
        loss = (1.0 - weight) * prediction + weight * regularization
        return Output(loss, features, {"prediction": prediction.detach(), "sigreg": regularization.detach()})
