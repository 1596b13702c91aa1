"""Self-supervised methods, one file each: its options, heads, teacher, loss, recipe and state."""

import sys

from pipelines.parts import find_part
from vssl.collectives import Peers
from vssl.methods.base import Method, MethodOptions
from vssl.methods.pairs import ViewCounts
from vssl.models.backbones import build_backbone
from vssl.models.config import ModelConfig
from vssl.models.norm import synchronise_statistics
from vssl.models.weights import load_backbone_weights

__all__ = ["COMPARED", "METHODS", "build_method", "find_method"]

# method.name, which is also the name of the module, and the class in it.
METHODS = {
    "vssl": "VSSL",
    "byol": "BYOL",
    "moco_v3": "MoCoV3",
    "vicreg": "VICReg",
    "dino": "DINO",
    "lejepa": "LeJEPA",
}
COMPARED = ("vssl", "byol", "moco_v3")  # the methods that the tools compare by default


def find_method(name: str) -> type[Method]:
    """The class of one of ``METHODS`` or at ``package.module:NAME``. Raises UserError as ``find_part``."""
    import_paths = {name: f"{__name__}.{name}:{member}" for name, member in METHODS.items()}
    return find_part("method.name", name, import_paths, Method)


def build_method(
    options: MethodOptions,
    model: ModelConfig,
    image_size: int,
    *,
    views: ViewCounts | None = None,
    peers: Peers | None = None,
) -> Method:
    """A method with a new network, its weights random or from ``model.weights``.

    Args:
        options: resolved: no value is null.
        image_size: side of a full view in pixels.
        views: how many views an image has.
        peers: the processes that share every batch.

    Raises:
        UserError: the backbone cannot be built or the weights cannot be loaded.
    """
    peers = peers or Peers()
    backbone, width = build_backbone(model, image_size)
    if model.weights:
        left_out = load_backbone_weights(backbone, model.weights)
        if left_out:
            print(left_out, file=sys.stderr)
    method = find_method(options.name)(options, backbone, width, views=views, peers=peers)
    if peers.distributed and model.sync_batchnorm:
        synchronise_statistics(method)
    return method
