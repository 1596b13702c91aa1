"""Networks of torch's own layers, as other programs know them, from those that the engine trains."""

from torch import nn
from torchvision.models import ResNet

from vssl.models.norm import restore_norms
from vssl.models.random_layers import restore_random_layers
from vssl.models.stem import LargeImageResNet, StemConv2d

__all__ = ["restore_layers"]


def restore_layers(network: nn.Module) -> None:
    """Undo in place what makes a backbone trainable by the engine: norms, random layers and stems become those of torch
    and torchvision again, with the same weights and the same output in evaluation mode."""
    restore_norms(network)
    restore_random_layers(network)
    for part in network.modules():
        if type(part) is StemConv2d:
            part.__class__ = nn.Conv2d
        elif type(part) is LargeImageResNet:
            part.__class__ = ResNet
