"""The views of every image: parameters are drawn first, by counter; applying them is a pure function of tensors."""

from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from pipelines.augment.blur import GaussianBlur
from pipelines.augment.colour import ColourJitter, Grayscale, Solarize
from pipelines.augment.crop import CROP_DRAWS, centre_boxes, crop_resize, pixel_boxes, sample_crops
from pipelines.augment.groups import ViewGroup, complete, view_groups
from pipelines.augment.operation import Operation, Planes, choose, flatten_views
from pipelines.batch import Views
from pipelines.config import AugmentConfig
from pipelines.errors import UserError
from pipelines.options import check_options
from pipelines.rng import Draws

__all__ = ["OPERATIONS", "Augment", "pixel_boxes"]

# The colour operations of a view, in the order in which they are applied.
OPERATIONS: tuple[type[Operation], ...] = (ColourJitter, Grayscale, GaussianBlur, Solarize)

# Where the random numbers of these names begin: fixed, to repeat recorded runs. New names need no entry.
_OFFSETS = {
    "crop": 0,
    "jitter amounts": 22,
    "jitter order": 26,
    "flip": 30,
    "jitter": 31,
    "gray": 32,
    "blur": 33,
    "solarize": 34,
    "blur sigma": 35,
}


class Augment:
    """The augmentation into views, and the transform for evaluation.

    All methods work under ``torch.compile(fullgraph=True)``, and none waits for the device.

    Args:
        config: the recipe.
        image_size: side S of a full view in pixels.

    Attributes:
        groups: full views, then local views if there are any.
        operations: by the name of a group, those of ``OPERATIONS`` that the recipe uses; the others cost nothing.

    Raises:
        UserError: an interpolation that does not exist, an option out of its bounds, or local views larger than S.
    """

    def __init__(self, config: AugmentConfig, image_size: int) -> None:
        check_options(config, "augment")
        known = get_args(get_type_hints(AugmentConfig)["interpolation"])
        if config.interpolation not in known:
            raise UserError(f"augment.interpolation must be {' or '.join(known)}, not {config.interpolation}")
        self.config = config = complete(config, image_size)
        self.image_size = image_size
        self.groups = view_groups(config, image_size)
        self.operations = {
            group.name: [used for used in (operation(config, group) for operation in OPERATIONS) if used.active]
            for group in self.groups
        }

    @property
    def needs_whole_images(self) -> bool:
        """Whether loaders must hand over whole images: they can cut out only two full views."""
        return len(self.groups) > 1 or self.groups[0].count != 2

    def views(self, pixels: Tensor, size: Tensor, index: Tensor, seed: Tensor | int, epoch: Tensor | int) -> Views:
        """Draw and make the views of a batch; crops are drawn only for whole images (C = 1).

        Args:
            pixels, size, index: as in ``Batch``.
            seed, epoch: integers, or int64 scalars on the device of ``index``.

        Returns:
            full views float32 [V * B, 3, S, S] and local views [L * B, 3, s, s], channels_last.
        """
        whole = pixels.shape[1] == 1
        return self.apply(pixels, self.sample_params(seed, epoch, index, size if whole else None))

    def sample_params(
        self, seed: Tensor | int, epoch: Tensor | int, index: Tensor, size: Tensor | None
    ) -> dict[str, Any]:
        """Draw the parameters of all views; an image's depend only on seed, epoch, its index and its size.

        Args:
            seed, epoch: integers, or int64 scalars on the device of ``index``.
            index: int64 [B], positions in the packed split.
            size: int32 [B, 2], heights and widths of whole images; None: the images are crops already.

        Returns:
            The parameters of the full views, tensors [B, V, ...], by the name of each operation that the recipe uses.
            In addition, ``crop``, int64 [B, V, 4], top, left, height, width in pixels (unless ``size`` is None),
            ``flip``, bool [B, V] (unless its probability is 0), and ``local``, the same for the local views (if there
            are any).
        """
        full, *others = (self._sample_group(group, seed, epoch, index, size) for group in self.groups)
        return full | {group.name: params for group, params in zip(self.groups[1:], others, strict=True)}

    def _sample_group(
        self, group: ViewGroup, seed: Tensor | int, epoch: Tensor | int, index: Tensor, size: Tensor | None
    ) -> dict[str, Any]:
        draws = Draws(seed, epoch, index, streams=group.numbers, offsets=_OFFSETS)
        params: dict[str, Any] = {}
        if size is not None:
            params["crop"] = pixel_boxes(self._sample_crops(group, draws, size), size)
        if self.config.flip > 0:
            params["flip"] = choose(draws, "flip", (self.config.flip,))
        return params | {operation.name: operation.sample(draws) for operation in self.operations[group.name]}

    def sample_crops(self, seed: Tensor | int, epoch: Tensor | int, index: Tensor, size: Tensor) -> Tensor:
        """Draw only the crops of the full views, for a loader that cuts them; arguments as for ``sample_params``.

        Returns:
            float32 [B, V, 4]: top, left, height, width as fractions of the image; ``pixel_boxes`` gives the pixels.
        """
        full = self.groups[0]
        return self._sample_crops(full, Draws(seed, epoch, index, streams=full.numbers, offsets=_OFFSETS), size)

    def _sample_crops(self, group: ViewGroup, draws: Draws, size: Tensor) -> Tensor:
        return sample_crops(draws.uniform("crop", CROP_DRAWS), size, group.scale, self.config.ratio)

    def apply(self, pixels: Tensor, params: dict[str, Any]) -> Views:
        """Make the views: crop, flip, the operations in their order, normalise.

        Args:
            pixels: uint8 [B, C, H, W, 3]. C = 1: whole images, to be cropped here. C = 2: the crops, H = W = S.
            params: of ``sample_params`` for these images.

        Returns:
            As ``views``.

        Raises:
            ValueError: C = 2, but the crops are not S x S, or there are other views than two full ones.
        """
        groups = ((group, params if group.name == "full" else params[group.name]) for group in self.groups)
        return Views(*(self._apply_group(group, pixels, its_params) for group, its_params in groups))

    def _apply_group(self, group: ViewGroup, pixels: Tensor, params: dict[str, Any]) -> Tensor:
        flip = params.get("flip")
        if pixels.shape[1] == 1:
            images = crop_resize(pixels[:, 0], params["crop"], group.side, self.config.interpolation, flip)
            planes = images.unbind(dim=1)
        else:
            planes = self._planes_of_crops(pixels, flip)
        for operation in self.operations[group.name]:
            planes = operation.apply(planes, params[operation.name])
        return self._normalise(planes)

    def evaluate(self, pixels: Tensor, size: Tensor) -> Tensor:
        """Centre square of side ``eval_crop`` times the shorter side, resized; nothing random.

        An image whose centre square already has S pixels per side is only normalised.

        Args:
            pixels: uint8 [B, 1, H, W, 3].
            size: int32 [B, 2], the valid heights and widths.

        Returns:
            float32 [B, 3, S, S], channels_last.
        """
        boxes = centre_boxes(size, self.config.eval_crop)
        images = crop_resize(pixels[:, 0], boxes, self.image_size, self.config.interpolation)
        return self._normalise(images.unbind(dim=1))

    def _planes_of_crops(self, pixels: Tensor, flip: Tensor | None) -> Planes:
        if self.needs_whole_images:
            raise ValueError(f"views of {[group.count for group in self.groups]} need whole images, not ready crops")
        if pixels.shape[2:4] != (self.image_size, self.image_size):
            raise ValueError(f"an image's crops must have {self.image_size} pixels per side, not {pixels.shape[2:4]}")
        planes = (pixels.transpose(0, 1).flatten(0, 1) / 255).unbind(dim=-1)
        if flip is None:
            return planes
        return tuple(torch.where(flatten_views(flip), plane.flip(-1), plane) for plane in planes)

    def _normalise(self, planes: Planes) -> Tensor:
        scaled = zip(planes, self.config.mean, self.config.std, strict=True)
        return torch.stack([(plane - mean) / std for plane, mean, std in scaled], dim=-1).permute(0, 3, 1, 2)
