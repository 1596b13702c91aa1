"""DINO: the student predicts the teacher's soft assignment of another view to prototypes.

Caron et al., Emerging Properties in Self-Supervised Vision Transformers, arXiv 2104.14294. Its multi-crop is
``augment.local_views=8 augment.scale=[0.4,1.0]``.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.batch import Views
from pipelines.options import option
from vssl.methods.base import Keys, Method, Output, Recipe, TeacherOptions
from vssl.methods.pairs import TWO_VIEWS, ViewCounts, mean_over_pairs
from vssl.models.ema import Teacher
from vssl.models.encoder import Encoder

__all__ = ["DINO", "DINOHead", "DINOOptions", "dino_loss"]


class DINOHead(nn.Module):
    """Linear, GELU, Linear, GELU, Linear, scaling to length 1, then cosine similarities to the prototypes.

    Appendix C of the paper. Its last layer is weight-normalised, with all lengths fixed at 1. Here it is a plain
    weight whose rows are normalised in ``forward``: the same function, with the same gradient.
    [B, inputs] -> float32 [B, prototypes] in [-1, 1].

    Args:
        inputs, hidden, bottleneck: widths.
        prototypes: number of prototypes.
    """

    def __init__(self, inputs: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.mlp[::2]:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False)

    def classifier_weights(self) -> set[str]:
        """Weights that an optimizer must not orthogonalise as a matrix: each row is a prototype."""
        return {"prototypes.weight"}

    def forward(self, features: Tensor, frozen: Tensor | None = None) -> Tensor:
        """``frozen``: bool, a scalar; if it is true, the prototypes get a gradient of 0."""
        embedding, weight = self.mlp(features), self.prototypes.weight
        if frozen is not None:
            weight = torch.where(frozen, weight.detach(), weight)
        # In bfloat16 a cosine has an error of up to 1/500; divided by the teacher's temperature, a twentieth of a nat.
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(embedding.float(), dim=1) @ F.normalize(weight, dim=1).T


def dino_loss(
    student: Tensor,
    teacher: Tensor,
    centre: Tensor,
    counts: ViewCounts = TWO_VIEWS,
    *,
    student_temperature: float,
    teacher_temperature: float | Tensor,
) -> dict[str, Tensor]:
    """Cross-entropy of the teacher's assignment of one view and the student's of another; mean over pairs of views.

    Equation 3 and algorithm 1 of the paper: the mean of H(t, s) = -sum_k P_t log P_s over pairs, with
    P_s = softmax(s / T_s) and P_t = softmax((t - centre) / T_t). Centring prevents one prototype from dominating,
    sharpening (T_t < T_s) prevents a uniform assignment.

    Args:
        student, teacher: float32 [(V + L) * B, K] and [V * B, K], view after view; the teacher gets no gradient.
        centre: float32 [K].
        counts: V and L.
        student_temperature, teacher_temperature: T_s and T_t, > 0.

    Returns:
        ``loss``, >= 0, and the detached scalars that add up to it: ``target_entropy`` (of P_t, in [0, log K]) and
        ``kl``, KL(P_t || P_s). A ``kl`` of 0 means collapse: the teacher's output is the same for all
        images (section 5.3).
    """
    log_target = F.log_softmax((teacher.detach() - centre) / teacher_temperature, dim=1)
    log_choice = F.log_softmax(student / student_temperature, dim=1)
    target = log_target.exp()
    targets, choices = target.chunk(counts.full), log_choice.chunk(counts.full + counts.local)
    rows = [-(targets[pair.teacher] * choices[pair.student]).sum(dim=1) for pair in counts.pairs]
    loss = mean_over_pairs(counts, torch.cat(rows))
    entropy = -(target * log_target).sum(dim=1).mean()
    return {"loss": loss, "target_entropy": entropy, "kl": loss.detach() - entropy}


@dataclass(frozen=True)
class DINOOptions(TeacherOptions):
    name: Literal["dino"] = option("dino", "which method")
    prototypes: int = option(4096, "K, number of prototypes", low=2)
    student_temperature: float = option(0.1, "temperature of the student's softmax", low=1e-6)
    teacher_temperature: float = option(0.04, "temperature of the teacher's softmax; lower is sharper", low=1e-6)
    warmup_teacher_temperature: float = option(
        0.04, "temperature of the teacher's softmax in the first epoch", low=1e-6
    )
    warmup_teacher_temperature_epochs: int = option(
        0, "epochs in which it rises linearly to teacher_temperature; 0: it is constant (the paper: 0.07 in 30)", low=0
    )
    centre_momentum: float = option(
        0.9, "m of the centre of the teacher's outputs: c <- m c + (1 - m) mean of the batch", low=0.0, high=1.0
    )
    frozen_epochs: int = option(1, "epochs at the start during which the prototypes are not trained", low=0)


class DINO(Method):
    """Backbone, head with a bottleneck of width ``latent``, a momentum teacher, and the centre of its outputs.

    Frozen prototypes have a gradient of 0. Weight decay still scales them, but they are normalised when used. The
    teacher's temperature is constant by default, as in the authors' program.

    Attributes:
        centre: float32 [prototypes], the moving average of the teacher's outputs over the batches of all processes.
    """

    Options = DINOOptions
    teacher: Teacher

    @classmethod
    def recipe(cls, options: Any, *, small_images: bool) -> Recipe:
        """solo-learn's recipe for a ResNet-18, the same for CIFAR and ImageNet-100 (da Costa et al., JMLR 2022)."""
        return Recipe("lars", 0.3, 1e-6, {"tau": 0.9995, "latent": 256, "projector_hidden": 2048})

    def build(self, backbone: nn.Module, width: int) -> None:
        options = self.options
        head = DINOHead(width, options.projector_hidden, options.latent, options.prototypes)
        self.student = Encoder(backbone, head)
        self.teacher = Teacher(self.student)
        self.register_buffer("centre", torch.zeros(options.prototypes))

    def forward(self, views: Views, keys: Keys) -> Output:
        """The loss; the metrics are those of ``dino_loss``."""
        options, backbone = self.options, self.student.backbone
        with self.autocast():
            _, targets = self.teacher(views.full)
            features = backbone(views.full)
            everything = features if views.local is None else torch.cat([features, backbone(views.local)])
            choices = self.student.projector(everything, frozen=keys.epoch < options.frozen_epochs)
        metrics = dino_loss(
            choices,
            targets,
            self.centre,
            self.views,
            student_temperature=options.student_temperature,
            teacher_temperature=self._teacher_temperature(keys.epoch),
        )
        self._move_centre(targets)
        return Output(metrics.pop("loss"), features, metrics)

    def _teacher_temperature(self, epoch: Tensor) -> float | Tensor:
        """T_t: linear from epoch 0 to the last one of the warm-up, then constant."""
        options = self.options
        first, last, epochs = (
            options.warmup_teacher_temperature,
            options.teacher_temperature,
            options.warmup_teacher_temperature_epochs,
        )
        if epochs == 0:
            return last
        return first + (last - first) * (epoch / max(1, epochs - 1)).clamp(max=1.0)

    @torch.no_grad()
    def _move_centre(self, outputs: Tensor) -> None:
        """Move the centre, in place, towards the mean of the teacher's outputs [V * B, K] (equation 4 of the paper)."""
        self.centre.lerp_(self.peers.mean(outputs.mean(dim=0)), 1.0 - self.options.centre_momentum)
