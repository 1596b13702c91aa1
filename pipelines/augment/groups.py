"""Groups of views: the full views and the local ones, each group with a side and a recipe of its own."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from pipelines.config import SMALL_IMAGE, AugmentConfig
from pipelines.errors import UserError

__all__ = ["FIRST_LOCAL_VIEW", "ViewGroup", "at_side", "complete", "view_groups"]

FIRST_LOCAL_VIEW = 500  # keeps the random numbers of local views independent of the number of full views


@dataclass(frozen=True)
class ViewGroup:
    """Views of one side. They are numbered from ``first``; a view's number selects its random numbers."""

    name: str  # "full" or "local"
    count: int
    side: int  # in pixels
    first: int
    scale: tuple[float, float]  # least and largest share of the image's area that a crop keeps

    @property
    def numbers(self) -> range:
        """The numbers of the views."""
        return range(self.first, self.first + self.count)


def complete(config: AugmentConfig, image_size: int) -> AugmentConfig:
    """``config`` with every null replaced by its default for full views of ``image_size`` pixels.

    Local views are half as large as small images, else 3/7 as large, in multiples of 16 pixels (224 gives 96, as in
    DINO, arXiv 2104.14294); their crops and their blur of larger images are DINO's too.
    """
    small = image_size <= SMALL_IMAGE
    side = max(4, image_size // 2) if small else 16 * round(image_size * 3 / 7 / 16)
    defaults: dict[str, Any] = {
        "local_views": 0,
        "local_size": side,
        "local_scale": (0.05, 0.4),
        "local_blur": 0.0 if small else 0.5,
    }
    missing = {key: value for key, value in defaults.items() if getattr(config, key) is None}
    return dataclasses.replace(config, **missing)


def at_side(config: AugmentConfig, image_size: int, side: int) -> AugmentConfig:
    """A complete ``config`` for full views of ``side`` instead of ``image_size`` pixels: local views become smaller in
    proportion, in multiples of 8 pixels."""
    assert config.local_size is not None, "complete the config first"
    if side == image_size:
        return config
    local = max(8, 8 * round(config.local_size * side / image_size / 8))
    return dataclasses.replace(config, local_size=min(config.local_size, local))


def view_groups(config: AugmentConfig, image_size: int) -> tuple[ViewGroup, ...]:
    """The groups of a recipe for full views of ``image_size`` pixels: full, then local if there are local views.

    Raises:
        UserError: local views would be larger than full ones.
    """
    config = complete(config, image_size)
    assert config.local_views is not None and config.local_size is not None and config.local_scale is not None
    full = ViewGroup("full", config.views, image_size, 0, config.scale)
    if config.local_views == 0:
        return (full,)
    if config.local_size > image_size:
        raise UserError(
            f"augment.local_size={config.local_size} must not exceed data.image_size={image_size}: local views are "
            "small crops"
        )
    return full, ViewGroup("local", config.local_views, config.local_size, FIRST_LOCAL_VIEW, config.local_scale)
