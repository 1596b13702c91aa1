"""VICReg: all views of an image get the same embedding; its dimensions vary and are not correlated.

Bardes, Ponce and LeCun, VICReg: Variance-Invariance-Covariance Regularization, arXiv 2105.04906.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.batch import Views
from pipelines.options import option
from vssl.collectives import Peers
from vssl.methods.base import Keys, Method, MethodOptions, Output, Recipe
from vssl.methods.pairs import TWO_VIEWS, ViewCounts, mean_over_pairs, mean_over_views
from vssl.models.encoder import Encoder
from vssl.models.heads import mlp

__all__ = ["VICReg", "VICRegOptions", "covariance_term", "variance_term", "vicreg_loss"]


def variance_term(z: Tensor, *, gamma: float = 1.0, eps: float = 1e-4) -> Tensor:
    """Mean distance of the standard deviations below ``gamma``: a scalar in [0, gamma).

    v(Z) = 1/D sum_d max(0, gamma - sqrt(Var(z_d) + eps)), with the unbiased variance over the rows (equations 1 and 2).

    z: float32 [N, D], N >= 2.
    """
    return F.relu(gamma - (z.var(dim=0) + eps).sqrt()).mean()


def covariance_term(z: Tensor) -> Tensor:
    """Sum of squared covariances between dimensions, over D: a scalar, >= 0.

    c(Z) = 1/D sum_{i != j} C_ij^2, with C the unbiased covariance over the rows (equations 3 and 4).

    z: float32 [N, D], N >= 2.
    """
    centred = z - z.mean(dim=0)
    covariance = centred.T @ centred / (len(z) - 1)
    return (covariance - covariance.diagonal().diag()).square().sum() / z.shape[1]


def vicreg_loss(
    embeddings: Tensor,
    invariance: float,
    variance: float,
    covariance: float,
    peers: Peers,
    counts: ViewCounts = TWO_VIEWS,
) -> dict[str, Tensor]:
    """lambda |Z - Z'|^2 / (N D) + mu (v(Z) + v(Z')) + nu (c(Z) + c(Z')): equation 6.

    As in the paper's algorithm 1 the squared distance is a mean over dimensions too, and the terms of the two views are
    summed. (The authors' program averages the variance terms: half their weight.) With more views the distance is a
    mean over pairs, and v and c are means over views, times 2.

    Variance and covariance are computed over the rows of all processes. No correcting factor is needed: the gradient of
    a row is the sum over N processes of the same value, and averaging the weights' gradients divides by N again.

    Args:
        embeddings: float32 [(V + L) * B, D], view after view.
        invariance, variance, covariance: the weights lambda, mu and nu.
        peers: the processes that share the batch.
        counts: V and L.

    Returns:
        ``loss`` and the detached scalars ``invariance``, ``variance``, ``covariance``, not weighted.
    """
    views = embeddings.chunk(counts.full + counts.local)
    everyone = peers.gather(torch.stack(views, dim=1)).unbind(dim=1)
    # The distance is the same in both directions of a pair: computed once.
    distances = {
        frozenset(pair[:2]): F.mse_loss(views[pair.student], views[pair.teacher])
        for pair in counts.pairs
        if pair.student > pair.teacher
    }
    terms = {
        "invariance": mean_over_pairs(counts, torch.stack([distances[frozenset(pair[:2])] for pair in counts.pairs])),
        "variance": 2.0 * mean_over_views(counts, torch.stack([variance_term(view) for view in everyone])),
        "covariance": 2.0 * mean_over_views(counts, torch.stack([covariance_term(view) for view in everyone])),
    }
    loss = invariance * terms["invariance"] + variance * terms["variance"] + covariance * terms["covariance"]
    return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}


@dataclass(frozen=True)
class VICRegOptions(MethodOptions):
    name: Literal["vicreg"] = option("vicreg", "which method")
    invariance_weight: float = option(25.0, "weight of the squared distance between an image's two embeddings", low=0.0)
    variance_weight: float = option(25.0, "weight of the hinge that keeps standard deviations at 1 or above", low=0.0)
    covariance_weight: float = option(1.0, "weight of the squared covariances of different dimensions", low=0.0)


class VICReg(Method):
    """Backbone and a projector of three layers (the expander); no teacher and no predictor.

    The linear layers have no bias: BatchNorm removes it, and the loss does not depend on the bias of the last layer.
    """

    Options = VICRegOptions
    micro_batch = "variances and covariances are those of a micro-batch"

    @classmethod
    def recipe(cls, options: Any, *, small_images: bool) -> Recipe:
        """solo-learn's recipe for a ResNet-18, the same for CIFAR and ImageNet-100 (da Costa et al., JMLR 2022)."""
        return Recipe("lars", 0.3, 1e-4, {"latent": 2048, "projector_hidden": 2048})

    def build(self, backbone: nn.Module, width: int) -> None:
        options = self.options
        self.student = Encoder(backbone, mlp(width, options.projector_hidden, options.latent, layers=3, bias=False))

    def forward(self, views: Views, keys: Keys) -> Output:
        """The loss; the metrics are those of ``vicreg_loss``."""
        with self.autocast():
            features, embeddings = self.encode(views)
        options = self.options
        weights = options.invariance_weight, options.variance_weight, options.covariance_weight
        metrics = vicreg_loss(torch.cat(embeddings).float(), *weights, self.peers, self.views)
        return Output(metrics.pop("loss"), features, metrics)
