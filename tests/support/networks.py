"""Networks from outside the package: ``model.backbone=support.networks:NAME``."""

import torch
from torch import nn
from torchvision.ops import StochasticDepth

from vssl.models.backbones import ResNet8


class UnusedWeight(ResNet8):
    """A ResNet-8 with a weight on which its features do not depend, as a token or a classifier that nobody calls."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(3))


class Dropping(nn.Module):
    """A small network with dropout of elements, of channels and of rows; no BatchNorm."""

    def __init__(self, rate: float = 0.3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 2, 1)
        self.channels, self.path, self.elements = nn.Dropout2d(rate), StochasticDepth(rate, "row"), nn.Dropout(rate)
        self.branch = nn.Conv2d(16, 16, 3, 1, 1)

    def forward(self, images):
        x = self.channels(self.conv(images).relu())
        x = x + self.path(self.branch(x))
        return self.elements(x.mean(dim=(2, 3)))


class FunctionalDropout(ResNet8):
    """A ResNet-8 with a dropout that is no layer."""

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.1, self.training)


class OtherOrder(Dropping):
    """Its dropout sees the images in another order than the others."""

    def forward(self, images):
        return self.elements(super().forward(images).flip(0)).flip(0)
