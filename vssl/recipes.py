"""What ``null`` in a config means: each method's published settings, so that changing ``objective.name`` is a fair run.

BYOL and MoCo v3: solo-learn's ResNet-18 recipes (da Costa et al., JMLR 2022). VSSL: BYOL's, so that the two
differ in nothing but the objective.
"""

import dataclasses
from dataclasses import dataclass

from vssl.config import Config

__all__ = ["Recipe", "recipe", "resolve"]


@dataclass(frozen=True)
class Recipe:
    """Optimizer and head widths of a method."""

    optimizer: str
    lr: float
    weight_decay: float
    tau: float
    latent: int
    projector_hidden: int
    predictor_hidden: int


def recipe(method: str, *, small_images: bool) -> Recipe:
    """The recipe of ``vssl``, ``byol`` or ``moco_v3``; ``small_images``: CIFAR's, else ImageNet-100's."""
    if method == "moco_v3":
        return Recipe("lars", 0.3, 1e-6, 0.99, 256, 4096, 4096)
    if small_images:
        return Recipe("lars", 1.0, 1e-5, 0.99, 256, 4096, 4096)
    return Recipe("lars", 0.5, 1e-6, 0.99, 256, 4096, 8192)


def resolve(config: Config) -> Config:
    """The config with every ``null`` that a recipe answers filled in."""
    chosen = recipe(config.objective.name, small_images=config.data.image_size <= 64)

    def fill(section: object, **values: object) -> object:
        missing = {key: value for key, value in values.items() if getattr(section, key) is None}
        return dataclasses.replace(section, **missing)

    model = fill(
        config.model,
        latent=chosen.latent,
        projector_hidden=chosen.projector_hidden,
        predictor_hidden=chosen.predictor_hidden,
    )
    optim = fill(config.optim, name=chosen.optimizer, lr=chosen.lr, weight_decay=chosen.weight_decay, tau=chosen.tau)
    return dataclasses.replace(config, model=model, optim=optim)
