"""The first convolution of a ResNet for large images, written so that a GPU's tensor cores are not left idle."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["StemConv2d"]


class StemConv2d(nn.Conv2d):
    """A 7x7 convolution of stride 2 and padding 3 without bias, as torchvision's ``conv1``; the same keys.

    On a GPU images of even height and width are first cut into blocks of 2x2 pixels, whose values become channels: then
    it is a 4x4 convolution of stride 1, with 16 channels (a quarter of them zero) instead of 3, which tensor cores
    handle poorly. Only the order of summation changes.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W] -> [B, outputs, ceil(H / 2), ceil(W / 2)]."""
        if x.is_cuda and x.shape[2] % 2 == x.shape[3] % 2 == 0:
            return self.on_blocks(x)
        return super().forward(x)

    def on_blocks(self, x: Tensor) -> Tensor:
        """``forward`` for even H and W, as it is computed on a GPU."""
        # A kernel of 8x8 with a zero in front starts one pixel earlier, which 4 instead of 3 pixels of padding allow.
        blocks = F.pixel_unshuffle(F.pad(x, (4, 2, 4, 2, 0, 1)), 2)
        kernel = F.pixel_unshuffle(F.pad(self.weight, (1, 0, 1, 0, 0, 1)), 2)
        if x.is_contiguous(memory_format=torch.channels_last):  # which eager pixel_unshuffle loses on a GPU
            blocks, kernel = (part.contiguous(memory_format=torch.channels_last) for part in (blocks, kernel))
        return F.conv2d(blocks, kernel)
