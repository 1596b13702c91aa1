"""BYOL: the student predicts the teacher's projection of the other view.

Grill et al., Bootstrap Your Own Latent, arXiv 2006.07733.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.options import option
from vssl.methods.base import Method, Output, PredictorOptions, Recipe, swap_views
from vssl.models.ema import Teacher
from vssl.models.encoder import Encoder
from vssl.models.heads import mlp

__all__ = ["BYOL", "BYOLOptions", "byol_loss"]


def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """2 - 2 cos(prediction, target), mean over the rows, both directions summed: a scalar in [0, 8].

    Equations 2 and 3 of the paper. Averaging the directions instead is a common mistake: it halves the learning
    rate that the recipe means. Both float32 [2B, D]; row i of ``target`` is the teacher's projection of the other view.
    """
    return 2.0 * (2.0 - 2.0 * F.cosine_similarity(prediction, target, dim=1).mean())


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
        self.predictor = nn.Identity()
        if options.predictor:
            self.predictor = mlp(options.latent, options.predictor_hidden, options.latent)
        self.teacher = Teacher(self.student, options.teacher_statistics)

    def forward(self, views: Tensor, index: Tensor, epoch: Tensor) -> Output:
        """Besides the loss: the mean ``cosine`` of prediction and target."""
        with self.autocast():
            _, projection = self.teacher(views)
            features, prediction = self._predict(views)
        prediction, target = prediction.float(), swap_views(projection.float())
        loss = byol_loss(prediction, target)
        return Output(loss, features, {"cosine": 1.0 - loss.detach() / 4.0})

    def _predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, projection = self.student(images)
        return features, self.predictor(projection)
