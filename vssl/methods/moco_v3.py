"""MoCo v3: the student recognises the teacher's embedding of the other view among those of all images.

Chen, Xie and He, An Empirical Study of Training Self-Supervised Vision Transformers, arXiv 2104.02057.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.options import option
from vssl.collectives import Peers
from vssl.methods.base import Method, Output, PredictorOptions, Recipe
from vssl.models.ema import Teacher
from vssl.models.encoder import Encoder
from vssl.models.heads import mlp

__all__ = ["MoCoV3", "MoCoV3Options", "moco_v3_loss"]


def moco_v3_loss(queries: Tensor, keys: Tensor, temperature: float, peers: Peers) -> dict[str, Tensor]:
    """InfoNCE over the batch, times 2 T, both directions summed.

    Algorithm 1 of the paper: contrastive(q1, k2) + contrastive(q2, k1), each 2 T CE(q k^T / T).

    Args:
        queries, keys: float32 [2B, D], the B rows of view 1 first.
        temperature: T > 0.
        peers: the keys of all processes are candidates.

    Returns:
        ``loss`` and detached scalars: ``cosine`` (of positives), ``accuracy`` (how often the right candidate
        is the nearest, in [0, 1]).
    """
    losses, cosines, hits = [], [], []
    halves = F.normalize(queries, dim=1).chunk(2), F.normalize(keys, dim=1).chunk(2)[::-1]
    for query, key in zip(*halves, strict=True):
        similarity = query @ peers.gather(key).T
        target = peers.places(query)
        losses.append(2.0 * temperature * F.cross_entropy(similarity / temperature, target))
        cosines.append((query.detach() * key).sum(dim=1).mean())
        hits.append((similarity.detach().argmax(dim=1) == target).float().mean())
    return {"loss": sum(losses), "cosine": sum(cosines) / 2, "accuracy": sum(hits) / 2}


@dataclass(frozen=True)
class MoCoV3Options(PredictorOptions):
    name: Literal["moco_v3"] = option("moco_v3", "which method")
    temperature: float = option(0.2, "T, temperature of the similarities", low=1e-6)


class MoCoV3(Method):
    """Backbone, projector (its output standardised) and predictor, both MLPs without bias, and a momentum teacher."""

    Options = MoCoV3Options
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
        self.predictor = nn.Identity()
        if options.predictor:
            self.predictor = mlp(options.latent, options.predictor_hidden, options.latent, bias=False)
        self.teacher = Teacher(self.student, options.teacher_statistics)

    def forward(self, views: Tensor, index: Tensor, epoch: Tensor) -> Output:
        """The loss; the metrics are those of ``moco_v3_loss``."""
        with self.autocast():
            _, keys = self.teacher(views)
            features, queries = self._predict(views)
        metrics = moco_v3_loss(queries.float(), keys.float(), self.options.temperature, self.peers)
        return Output(metrics.pop("loss"), features, metrics)

    def _predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, projection = self.student(images)
        return features, self.predictor(projection)
