"""The encoder: backbone and projector."""

from torch import Tensor, nn

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """Backbone and projector. A run exports the backbone; the projector belongs to the method.

    Args:
        backbone: [B, 3, S, S] -> features [B, F].
        projector: features [B, F] -> an embedding (a tensor, or a named tuple of tensors).
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, images: Tensor) -> tuple:
        """images [B, 3, S, S] -> features [B, F] and the projector's embedding."""
        features = self.backbone(images)
        return features, self.projector(features)
