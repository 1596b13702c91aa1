"""Groups of weights: by kind (which decay, which are matrices) and by part (rates of the backbone and its layers)."""

import fnmatch
import re
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from pipelines.errors import UserError
from vssl.optim.base import Group, OptimOptions

__all__ = ["layer_depths", "parameter_groups"]

_NORMS = (nn.LayerNorm, nn.RMSNorm)  # their weights may have several dimensions; those of the others have one


class _Weight(NamedTuple):
    weight: Tensor
    decays: bool
    is_matrix: bool


def parameter_groups(
    module: nn.Module, options: OptimOptions, backbone: nn.Module | None = None, *, split_matrices: bool = False
) -> list[Group]:
    """The trained weights of ``module``, by kind and by factor of the learning rate, each group in the module's order.

    Kinds: ``plain`` are biases, norms, scales, position embeddings, class tokens, and the weights that the network
    itself excludes (``no_weight_decay()``, timm's convention): without weight decay, and without adaptation under LARS.
    ``decayed`` are the others: matrices and kernels. With ``split_matrices`` the kind of most of these is ``matrix``;
    not of tables of embeddings, depthwise kernels, and the weights that a module calls a classifier
    (``classifier_weights()``: names or patterns, as for ``no_weight_decay()``).

    Args:
        backbone: the part of ``module`` that ``backbone_lr_scale`` and ``layer_decay`` mean; None: neither applies.

    Returns:
        groups with ``params``, ``kind`` and ``lr_scale``. For each factor, the largest first, there is a group of
        every kind, which may be empty: so without factors there are always the same groups.

    Raises:
        UserError: ``layer_decay`` is not 1, and the backbone's layers are not known.
    """
    scales = {} if backbone is None else _scales(backbone, options)
    kinds = ("matrix", "decayed", "plain") if split_matrices else ("decayed", "plain")
    found: dict[tuple[float, str], list[Tensor]] = {}
    for weight, decays, is_matrix in _weights(module):
        kind = "plain" if not decays else "matrix" if is_matrix and split_matrices else "decayed"
        found.setdefault((scales.get(id(weight), 1.0), kind), []).append(weight)
    factors = sorted({scale for scale, _ in found} or {1.0}, reverse=True)
    return [
        {"params": found.get((scale, kind), []), "kind": kind, "lr_scale": scale} for scale in factors for kind in kinds
    ]


def _weights(module: nn.Module) -> Iterator[_Weight]:
    """Every weight that is trained, with its kind. Parameters not named weight are embeddings, tokens or scales."""
    parts = dict(module.named_modules())
    plain, classifiers = _named_by(parts, "no_weight_decay"), _named_by(parts, "classifier_weights")
    for name, weight in module.named_parameters():
        if weight.requires_grad:
            part = parts[name.rpartition(".")[0]]
            decays = weight.ndim > 1 and "weight" in name and not isinstance(part, _NORMS) and not _listed(name, plain)
            is_table = isinstance(part, nn.Embedding) or _listed(name, classifiers)
            yield _Weight(weight, decays, decays and not is_table and min(weight.shape[:2]) > 1)


def _named_by(parts: dict[str, nn.Module], method: str) -> list[str]:
    """The full names of the weights, or patterns of names, that modules list in a method of theirs."""
    listing = {path: part for path, part in parts.items() if hasattr(part, method)}
    return [f"{path}.{name}".removeprefix(".") for path, part in listing.items() for name in getattr(part, method)()]


def _listed(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _scales(backbone: nn.Module, options: OptimOptions) -> dict[int, float]:
    """The factor of the learning rate of each of the backbone's weights, by ``id``."""
    depths = {} if options.layer_decay == 1.0 else layer_depths(backbone)
    return {
        id(weight): options.backbone_lr_scale * options.layer_decay ** depths.get(name, 0)
        for name, weight in backbone.named_parameters()
    }


def layer_depths(backbone: nn.Module) -> dict[str, int]:
    """The number of layers above each weight's own, by name; 0: it is in the last layer.

    The layers are timm's own, if the network has its ``group_matcher`` (each block of a ViT; final norms with the last
    layer); else, as in torchvision's ResNets, the stem and ``layer1``, ``layer2``, ...

    Raises:
        UserError: the network has neither.
    """
    names = [name for name, _ in backbone.named_parameters()]
    if hasattr(backbone, "group_matcher"):
        from timm.models import group_parameters  # optional; only its own networks have a group_matcher

        layers: dict[str, int] = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
    else:
        matches = {name: re.match(r"layer(\d+)\.", name) for name in names}
        layers = {name: int(match[1]) if match else 0 for name, match in matches.items()}
    if len(set(layers.values())) < 2:
        raise UserError(
            "optim.layer_decay: the backbone does not say what its layers are (layer1, layer2, ... or timm's "
            "group_matcher); set it to 1"
        )
    return {name: max(layers.values()) - layers[name] for name in names}
