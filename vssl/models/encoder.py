"""Encoder (backbone and projector) and student (encoder and predictor)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vssl.models.backbones import build_backbone
from vssl.models.heads import Gaussian, GaussianHead, mlp

__all__ = ["Encoder", "ModelConfig", "Student", "build_student"]


@dataclass(frozen=True)
class ModelConfig:
    """The network. Head widths of ``null`` are those of the method's recipe."""

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet8"] = "resnet18"
    stem: Literal["auto", "cifar", "imagenet"] = "auto"  # auto: cifar up to 64 pixels a side
    projector_hidden: int | None = None
    predictor_hidden: int | None = None
    latent: int | None = None  # D, the width of the embedding that the objective sees
    predictor: bool = True  # without one, the student's mean is the encoder's
    logvar_bound: float = 2.0  # log-variances lie in (-bound, bound)
    sync_batchnorm: bool = True  # with several processes: batch statistics are those of all their images
    weights: str = ""  # start the backbone from this .safetensors file


class Encoder(nn.Module):
    """Backbone and projector. The teacher is a copy of it that follows by a moving average.

    ``width`` is that of the backbone's features, F.
    """

    def __init__(self, backbone: nn.Module, width: int, projector: nn.Module) -> None:
        super().__init__()
        self.width = width
        self.backbone = backbone
        self.projector = projector

    def forward(self, images: Tensor) -> tuple[Tensor, Gaussian]:
        """images [B, 3, S, S] -> features [B, F], embedding of [B, D]."""
        features = self.backbone(images)
        embedding = self.projector(features)
        return features, embedding if isinstance(embedding, Gaussian) else Gaussian(embedding, None)


class Student(nn.Module):
    """Encoder and predictor. The predictor changes only the mean: the variance is the encoder's own, so that the
    teacher's variance head, the moving average of this one, is trained too."""

    def __init__(self, encoder: Encoder, predictor: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.predictor = predictor

    def forward(self, images: Tensor) -> tuple[Tensor, Gaussian]:
        """images [B, 3, S, S] -> features [B, F], prediction of [B, D]."""
        features, embedding = self.encoder(images)
        return features, Gaussian(self.predictor(embedding.mean), embedding.logvar)


def per_view(network: nn.Module, views: Tensor) -> tuple[Tensor, Gaussian]:
    """Run ``network`` on each half of ``views`` [2B, 3, S, S] by itself, as the methods' papers do, so that BatchNorm
    takes its statistics a view at a time; the results are joined again: [2B, F], [2B, D]."""
    (features_1, out_1), (features_2, out_2) = (network(view) for view in views.chunk(2))
    logvar = None if out_1.logvar is None else torch.cat([out_1.logvar, out_2.logvar])
    return torch.cat([features_1, features_2]), Gaussian(torch.cat([out_1.mean, out_2.mean]), logvar)


def build_student(config: ModelConfig, image_size: int, *, method: Literal["vssl", "byol", "moco_v3"]) -> Student:
    """The student of a method, with the method's heads: head widths must be resolved (not None).

    vssl: a Gaussian projector and a predictor with a standardised end. byol: MLPs with bias. moco_v3: MLPs without
    bias, the projector's end standardised.
    """
    backbone, width = build_backbone(config.backbone, config.stem, image_size)
    hidden, latent = config.projector_hidden, config.latent
    bias = method != "moco_v3"
    if method == "vssl":
        projector = GaussianHead(width, hidden, latent, config.logvar_bound)
    else:
        projector = mlp(width, hidden, latent, bias=bias, standardise=method == "moco_v3")
    predictor = nn.Identity()
    if config.predictor:
        predictor = mlp(latent, config.predictor_hidden, latent, bias=bias, standardise=method == "vssl")
    return Student(Encoder(backbone, width, projector), predictor)
