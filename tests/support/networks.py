"""Networks from outside the package: ``model.backbone=support.networks:NAME``."""

import torch
from torch import nn

from vssl.models.backbones import ResNet8


class UnusedWeight(ResNet8):
    """A ResNet-8 with a weight on which its features do not depend, as a token or a classifier that nobody calls."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(3))
