"""Options of the backbone that every method trains."""

from dataclasses import dataclass
from typing import Literal

from pipelines.options import option
from pipelines.parts import OWN

__all__ = ["BACKBONES", "ModelConfig"]

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet8")


@dataclass(frozen=True)
class ModelConfig:
    """The backbone; heads belong to the method."""

    backbone: str = option(
        "resnet18",
        "a torchvision ResNet, resnet8 (for CPUs), any timm network, or a function of your own that makes one",
        words=(*BACKBONES, "timm:NAME", OWN),
    )
    options: dict = option(  # noqa: RUF009 (it is a field)
        {}, "arguments of a timm network, e.g. {drop_path_rate: 0.1, patch_size: 8}"
    )
    stem: Literal["auto", "cifar", "imagenet"] = option("auto", "stem of ResNets; auto: cifar up to 64 pixels")
    sync_batchnorm: bool = option(True, "several processes: take batch statistics over the images of all")
    weights: str = option("", "start the backbone from this file (.safetensors, .pth, ...) or from this run", path=True)
