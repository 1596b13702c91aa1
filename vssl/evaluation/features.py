"""Features of a packed split, computed once, in evaluation mode."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipelines.batch import Loader

__all__ = ["extract_features"]


@torch.no_grad()
def extract_features(
    backbone: nn.Module,
    loader: Loader,
    prepare: Callable[[Tensor, Tensor], Tensor],
    autocast: Callable,
    each: Callable[[], object] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Run ``backbone`` in evaluation mode over all images of an evaluation loader, then restore its mode.

    Args:
        prepare: ``Augment.evaluate``: (pixels, size) to normalised images.
        autocast: returns the context in which to run the backbone.
        each: called before each batch; an exception that it raises ends the work.

    Returns:
        features float32 [N, F] and labels int64 [N], on the device.
    """
    was_training = backbone.training
    backbone.eval()
    features, labels = [], []
    loader.set_epoch(0)
    try:
        for batch in loader:
            each()
            images = prepare(batch.pixels, batch.size)
            with autocast():
                features.append(backbone(images).float())
            labels.append(batch.labels)
    finally:
        backbone.train(was_training)
    return torch.cat(features), torch.cat(labels)
