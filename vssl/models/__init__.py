"""Networks: backbones, heads, student and teacher."""

from vssl.models.backbones import BACKBONES, build_backbone, load_backbone_weights
from vssl.models.ema import Teacher
from vssl.models.encoder import Encoder, ModelConfig, Student, build_student, per_view
from vssl.models.heads import Gaussian
from vssl.models.norm import synchronise_statistics

__all__ = [
    "BACKBONES",
    "Encoder",
    "Gaussian",
    "ModelConfig",
    "Student",
    "Teacher",
    "build_backbone",
    "build_student",
    "load_backbone_weights",
    "per_view",
    "synchronise_statistics",
]
