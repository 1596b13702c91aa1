"""BYOL: the student predicts the teacher's projection of the other view.

Grill et al., Bootstrap Your Own Latent, arXiv 2006.07733.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.batch import Views
from pipelines.options import option
from vssl.methods.base import Keys, Method, Output, PredictorOptions, Recipe
from vssl.methods.pairs import TWO_VIEWS, ViewCounts, mean_over_pairs, pair_rows
from vssl.models.ema import Teacher
from vssl.models.encoder import Encoder
from vssl.models.heads import mlp

__all__ = ["BYOL", "BYOLOptions", "byol_loss"]


def byol_loss(prediction: Tensor, target: Tensor, counts: ViewCounts = TWO_VIEWS) -> Tensor:
    """2 - 2 cos(prediction, target), mean over images and pairs of views, times 2: a scalar in [0, 8].

    Equations 2 and 3 of the paper, which sums the two directions of two views. Averaging them instead is a common
    mistake: it halves the learning rate that the recipe means.

    Args:
        prediction, target: float32 [P * B, D], the student's prediction and the teacher's projection of each pair.
        counts: whose pairs they are.
    """
    return 2.0 * (2.0 - 2.0 * mean_over_pairs(counts, F.cosine_similarity(prediction, target, dim=1)))


@dataclass(frozen=True)
class BYOLOptions(PredictorOptions):
    name: Literal["byol"] = option("byol", "which method")


class BYOL(Method):
    """Backbone, projector and predictor (MLPs with bias), and a momentum teacher."""

    Options = BYOLOptions
    teacher: Teacher

    @classmethod
    def recipe(cls, options: Any, *, small_images: bool) -> Recipe:
        """The recipe of solo-learn for a ResNet-18 (da Costa et al., JMLR 2022)."""
        widths = {
            "latent": 256,
            "projector_hidden": 4096,
            "predictor_hidden": options.projector_hidden or (4096 if small_images else 8192),
        }
        lr, weight_decay = (1.0, 1e-5) if small_images else (0.5, 1e-6)
        return Recipe("lars", lr, weight_decay, {"tau": 0.99, **widths})

    def build(self, backbone: nn.Module, width: int) -> None:
        options = self.options
        self.student = Encoder(backbone, mlp(width, options.projector_hidden, options.latent))
        self.add_predictors(
            lambda: (
                mlp(options.latent, options.predictor_hidden, options.latent) if options.predictor else nn.Identity()
            )
        )
        self.teacher = Teacher(self.student)

    def forward(self, views: Views, keys: Keys) -> Output:
        """Besides the loss: the mean ``cosine`` of prediction and target."""
        with self.autocast():
            _, projection = self.teacher(views.full)
            features, embeddings = self.encode(views)
            prediction = self.apply_predictors(embeddings)
        loss = byol_loss(*pair_rows(self.views, prediction.float(), projection.float()), self.views)
        return Output(loss, features, {"cosine": 1.0 - loss.detach() / 4.0})
