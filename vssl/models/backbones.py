"""Backbones: torchvision's ResNets with torchvision's keys, a stem for small images, and a small ResNet for CPUs."""

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from pipelines.errors import UserError
from vssl.models.norm import BatchNorm2d

__all__ = ["BACKBONES", "build_backbone", "load_backbone_weights"]

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet8")


class ResNet8(nn.Module):
    """He et al.'s CIFAR ResNet (arXiv 1512.03385, section 4.2) with one block a stage: for CPUs, tests, demonstrations.

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


def build_backbone(name: str, stem: str, image_size: int) -> tuple[nn.Module, int]:
    """A backbone without its classifier, and the width of its features.

    Args:
        name: one of ``BACKBONES``.
        stem: ``imagenet`` (7x7 stride 2 and max-pool), ``cifar`` (3x3 stride 1, padding 1, no pool; the keys stay),
            or ``auto`` (cifar up to 64 pixels a side). ``resnet8`` has a stem of its own.
        image_size: side of a view in pixels.

    Returns:
        module ([B, 3, H, W] -> [B, width]) and width.
    """
    if name == "resnet8":
        return ResNet8(), 64
    backbone = getattr(torchvision.models, name)(weights=None, norm_layer=BatchNorm2d)
    width = backbone.fc.in_features
    backbone.fc = nn.Identity()
    if stem == "cifar" or (stem == "auto" and image_size <= 64):
        backbone.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
        backbone.maxpool = nn.Identity()
    return backbone, width


def load_backbone_weights(backbone: nn.Module, path: str) -> None:
    """Start from given weights: a ``.safetensors`` file with torchvision's keys; a classifier's ``fc.*`` is left out.

    Raises:
        UserError: no such file, not safetensors, or keys or shapes that do not fit the backbone.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read model.weights={path}: {error}") from error
    weights = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    try:
        backbone.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        first = str(error).split("\n")[1].strip()
        raise UserError(f"model.weights={path} does not fit the backbone: {first}") from error
