"""Options of the network that every method trains."""

from dataclasses import dataclass
from typing import Literal

from pipelines.options import option

__all__ = ["BACKBONES", "ModelConfig"]

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet8")


@dataclass(frozen=True)
class ModelConfig:
    """The backbone; heads belong to the method."""

    backbone: str = option(
        "resnet18", "torchvision's ResNets, a small one for CPUs, or any of timm's", words=(*BACKBONES, "timm:NAME")
    )
    stem: Literal["auto", "cifar", "imagenet"] = option("auto", "of ResNets; auto: cifar up to 64 pixels a side")
    sync_batchnorm: bool = option(True, "with several processes: batch statistics are those of all their images")
    weights: str = option("", "start the backbone from this .safetensors file")
