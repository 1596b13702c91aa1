"""MoCo v3: the student recognises the teacher's embedding of the other view among those of all images.

Chen, Xie and He, An Empirical Study of Training Self-Supervised Vision Transformers, arXiv 2104.02057.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.batch import Views
from pipelines.options import option
from vssl.collectives import Peers
from vssl.methods.base import Keys, Method, Output, PredictorOptions, Recipe
from vssl.methods.pairs import TWO_VIEWS, ViewCounts, mean_over_pairs, pair_with_each_teacher
from vssl.models.ema import Teacher
from vssl.models.encoder import Encoder
from vssl.models.heads import mlp

__all__ = ["MoCoV3", "MoCoV3Options", "moco_v3_loss"]


def moco_v3_loss(
    queries: Tensor, keys: Tensor, temperature: float, peers: Peers, counts: ViewCounts = TWO_VIEWS
) -> dict[str, Tensor]:
    """InfoNCE over the batch, times 2 T, mean over pairs of views, times 2.

    Algorithm 1 of the paper: contrastive(q1, k2) + contrastive(q2, k1), each 2 T CE(q k^T / T).

    Args:
        queries, keys: float32 [(V + L) * B, D] of the student and [V * B, D] of the teacher, view after view.
        temperature: T > 0.
        peers: the keys of all processes are candidates.
        counts: V and L.

    Returns:
        ``loss`` and detached scalars: ``cosine`` (of positives), ``accuracy`` (how often the right candidate
        is the nearest, in [0, 1]).
    """
    queries, keys = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    own = peers.own_rows(keys[: len(keys) // counts.full])
    losses, cosines, hits = [], [], []
    for similarity in pair_with_each_teacher(counts, lambda q, k: q @ peers.gather(k).T, queries, keys):
        losses.append(2.0 * temperature * F.cross_entropy(similarity / temperature, own))
        with torch.no_grad():
            cosines.append(similarity.gather(1, own[:, None]).mean())
            hits.append((similarity.argmax(dim=1) == own).float().mean())
    return {
        "loss": 2.0 * mean_over_pairs(counts, torch.stack(losses)),
        "cosine": torch.stack(cosines).mean(),
        "accuracy": torch.stack(hits).mean(),
    }


@dataclass(frozen=True)
class MoCoV3Options(PredictorOptions):
    name: Literal["moco_v3"] = option("moco_v3", "which method")
    temperature: float = option(0.2, "T, temperature of the similarities", low=1e-6)


class MoCoV3(Method):
    """Backbone, projector (its output standardised) and predictor, both MLPs without bias, and a momentum teacher."""

    Options = MoCoV3Options
    micro_batch = "an image is told apart from the other images of its micro-batch alone"
    teacher: Teacher

    @classmethod
    def recipe(cls, options: Any, *, small_images: bool) -> Recipe:
        """The recipe of solo-learn for a ResNet-18 (da Costa et al., JMLR 2022)."""
        widths = {
            "latent": 256,
            "projector_hidden": 4096,
            "predictor_hidden": options.projector_hidden or 4096,
        }
        return Recipe("lars", 0.3, 1e-6, {"tau": 0.99, **widths})

    def build(self, backbone: nn.Module, width: int) -> None:
        options = self.options
        projector = mlp(width, options.projector_hidden, options.latent, bias=False, standardise=True)
        self.student = Encoder(backbone, projector)
        self.add_predictors(
            lambda: (
                mlp(options.latent, options.predictor_hidden, options.latent, bias=False)
                if options.predictor
                else nn.Identity()
            )
        )
        self.teacher = Teacher(self.student)

    def forward(self, views: Views, keys: Keys) -> Output:
        """The loss; the metrics are those of ``moco_v3_loss``."""
        with self.autocast():
            _, targets = self.teacher(views.full)
            features, embeddings = self.encode(views)
            queries = self.apply_predictors(embeddings)
        temperature = self.options.temperature
        metrics = moco_v3_loss(queries.float(), targets.float(), temperature, self.peers, self.views)
        return Output(metrics.pop("loss"), features, metrics)
