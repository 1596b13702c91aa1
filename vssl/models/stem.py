"""torchvision's ResNets with a first stage that suits GPUs: convolution, norm and pooling of large images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet

__all__ = ["LargeImageResNet", "StemConv2d"]


class StemConv2d(nn.Conv2d):
    """A 7x7 convolution of stride 2 and padding 3 without bias, as torchvision's ``conv1``; the same keys.

    On a GPU images of even height and width are first cut into blocks of 2x2 pixels, whose values become channels. This
    gives a 4x4 convolution of stride 1 with 16 channels (a quarter of them zero) instead of 3, which tensor cores
    handle poorly. Only the order of summation changes.
    """

    def forward(self, x: Tensor, signs: Tensor | None = None) -> Tensor:
        """x [B, 3, H, W] -> [B, outputs, ceil(H / 2), ceil(W / 2)], times ``signs`` [outputs] of 1 and -1 if given."""
        weight = self.weight if signs is None else self.weight * signs[:, None, None, None]
        if x.is_cuda and x.shape[2] % 2 == x.shape[3] % 2 == 0:
            return self.on_blocks(x, weight)
        return self._conv_forward(x, weight, None)

    @staticmethod
    def on_blocks(x: Tensor, weight: Tensor) -> Tensor:
        """``forward`` for even H and W, as it is computed on a GPU."""
        # A kernel of 8x8 with a zero in front starts one pixel earlier, which 4 instead of 3 pixels of padding allow.
        blocks = F.pixel_unshuffle(F.pad(x, (4, 2, 4, 2, 0, 1)), 2)
        kernel = F.pixel_unshuffle(F.pad(weight, (1, 0, 1, 0, 0, 1)), 2)
        if x.is_contiguous(memory_format=torch.channels_last):  # which eager pixel_unshuffle loses on a GPU
            blocks, kernel = (part.contiguous(memory_format=torch.channels_last) for part in (blocks, kernel))
        return F.conv2d(blocks, kernel)


class LargeImageResNet(ResNet):
    """torchvision's ResNet without classifier, whose ``conv1`` is a ``StemConv2d`` and whose norms are
    ``vssl.models.norm.BatchNorm2d``; the same keys.

    In compiled training the first norm follows the pooling (``BatchNorm2d.of_maxima``): the network's largest image,
    the norm's output before pooling, is neither written nor read.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W] -> [B, width]."""
        if self.bn1.training and torch.compiler.is_compiling():
            signs = torch.where(self.bn1.weight < 0, -1.0, 1.0)
            x = self.relu(self.bn1.of_maxima(self.conv1(x, signs), signs))
        else:
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.avgpool(x).flatten(1)
