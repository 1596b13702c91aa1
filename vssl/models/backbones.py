"""Backbones: torchvision's ResNets, with a stem for small images; a ResNet for CPUs; timm's networks."""

import difflib
import inspect
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from pipelines.config import SMALL_IMAGE
from pipelines.errors import UserError
from pipelines.parts import find_part, is_own
from vssl.models.config import ModelConfig
from vssl.models.norm import BatchNorm2d, adopt_norms
from vssl.models.random_layers import adopt_random_layers
from vssl.models.stem import LargeImageResNet, StemConv2d

__all__ = ["build_backbone", "check_side"]


class ResNet8(nn.Module):
    """He et al.'s CIFAR ResNet (arXiv 1512.03385, section 4.2) with one block per stage, for CPUs and tests.

    78 thousand weights, 25 MFLOP at 32x32. [B, 3, H, W] -> [B, 64].
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(16, 16, stride=1)
        self.layer2 = self._stage(16, 32, stride=2)
        self.layer3 = self._stage(32, 64, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        shortcut = None
        if inputs != outputs:
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), BatchNorm2d(outputs))
        return nn.Sequential(BasicBlock(inputs, outputs, stride, shortcut, norm_layer=BatchNorm2d))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.avgpool(x).flatten(1)


def build_backbone(config: ModelConfig, image_size: int) -> tuple[nn.Module, int]:
    """Build a backbone without its classifier.

    Args:
        config: ``backbone`` names it: ``package.module:NAME`` is a function or class of the user's that returns it, and
            gets ``image_size`` if it has an argument of this name. ``stem`` is ``imagenet`` (7x7 stride 2 and
            max-pool), ``cifar`` (3x3 stride 1, padding 1, no pool; the same keys), or ``auto`` (cifar for small
            images); all but torchvision's ResNets have stems of their own.
        image_size: side of a view in pixels.

    Returns:
        the module ([B, 3, H, W] -> [B, width]) and the width of its features.

    Raises:
        UserError: timm is not installed or has no such network, the network does not take images of this size, or a
            norm is not supported (``adopt_norms``).
    """
    if config.options and not config.backbone.startswith("timm:"):
        raise UserError(f"model.options are arguments of a timm network, which model.backbone={config.backbone} is not")
    if config.backbone.startswith("timm:"):
        backbone, width = _build_timm(config.backbone.removeprefix("timm:"), config, image_size)
        check_side(backbone, config.backbone, image_size)
    elif is_own(config.backbone):
        backbone, width = _build_own(config.backbone, image_size)
    elif config.backbone == "resnet8":
        backbone, width = ResNet8(), 64
    else:
        backbone = getattr(torchvision.models, config.backbone)(weights=None, norm_layer=BatchNorm2d)
        width = backbone.fc.in_features
        backbone.fc = nn.Identity()
        if config.stem == "cifar" or (config.stem == "auto" and image_size <= SMALL_IMAGE):
            backbone.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
            backbone.maxpool = nn.Identity()
        else:
            backbone.__class__, backbone.conv1.__class__ = LargeImageResNet, StemConv2d  # keep their weights
    adopt_norms(backbone)
    adopt_random_layers(backbone)
    return backbone, width


def _build_timm(name: str, config: ModelConfig, image_size: int) -> tuple[nn.Module, int]:
    """A network of timm (https://github.com/huggingface/pytorch-image-models) with random weights."""
    try:
        import timm
    except ImportError as error:
        raise UserError(f"model.backbone=timm:{name} needs timm, which cannot be imported ({error})") from error
    if config.stem == "cifar":
        raise UserError(f"model.stem=cifar: timm:{name} has a stem of its own; set model.stem=auto")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.0)[0]
        raise UserError(f"timm has no network {name!r}; did you mean model.backbone=timm:{near}?")
    # How a network is loaded, what it takes and what it returns is no one's choice; model.weights starts from a file.
    reserved = {*inspect.signature(timm.create_model).parameters, "num_classes", "in_chans", "features_only"}
    for option in sorted(reserved & config.options.keys()):
        raise UserError(f"model.options: a backbone's {option} cannot be set")
    # The size of position embeddings; dynamic ones are fitted to each view. Most networks have neither argument.
    sizes: dict[str, Any] = {"img_size": image_size, "dynamic_img_size": True}
    while True:
        try:
            backbone = timm.create_model(name, num_classes=0, **(sizes | config.options))
            break
        except Exception as error:
            if isinstance(error, TypeError) and sizes:
                sizes.popitem()
            elif config.options:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise UserError(f"model.options={config.options}: timm:{name} cannot be built: {reason}") from error
            else:
                raise
    return backbone, getattr(backbone, "head_hidden_size", None) or backbone.num_features


def _build_own(name: str, image_size: int) -> tuple[nn.Module, int]:
    """A network of the user's code: [B, 3, S, S] -> [B, width]; the width is that of what it returns."""
    make = find_part("model.backbone", name, {})
    takes_size = "image_size" in inspect.signature(make).parameters
    backbone = make(image_size=image_size) if takes_size else make()
    if not isinstance(backbone, nn.Module):
        raise UserError(f"model.backbone={name} must return a torch.nn.Module, not {type(backbone).__name__}")
    features = check_side(backbone, name, image_size)
    if not isinstance(features, Tensor) or features.ndim != 2:
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(f"model.backbone={name} must turn images [B, 3, S, S] into features [B, F], not {shape}")
    return backbone, features.shape[1]


@torch.no_grad()
def check_side(backbone: nn.Module, name: str, side: int) -> Any:
    """What a backbone, on the CPU, makes of one image of ``side`` pixels. ``name`` is its ``model.backbone``.

    Raises:
        UserError: it does not take such images: patches, strides and position embeddings limit the sizes.
    """
    training = backbone.training
    try:
        return backbone.eval()(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"model.backbone={name} does not take images of {side} pixels: {error or type(error).__name__}"
        ) from error
    finally:
        backbone.train(training)
