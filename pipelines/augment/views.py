"""Two views of every image: parameters are drawn first, by counter; applying them is a pure function of tensors."""

from typing import get_args, get_type_hints

import torch
from torch import Tensor

from pipelines.augment.blur import GaussianBlur
from pipelines.augment.colour import ColourJitter, Grayscale, Solarize
from pipelines.augment.crop import CROP_DRAWS, centre_boxes, crop_resize, pixel_boxes, sample_crops
from pipelines.augment.operation import Operation, Params, Planes, choose, flatten_views
from pipelines.config import AugmentConfig
from pipelines.errors import UserError
from pipelines.options import check_options
from pipelines.rng import Draws

__all__ = ["OPERATIONS", "Augment", "pixel_boxes"]

# The colour operations of a view, in the order in which they are applied.
OPERATIONS: tuple[type[Operation], ...] = (ColourJitter, Grayscale, GaussianBlur, Solarize)

# Where the random numbers of these names begin: fixed, so that recorded runs can be repeated. New names need no entry.
_PLACES = {
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
    """The two-view augmentation, and the transform for evaluation.

    All methods work under ``torch.compile(fullgraph=True)``, and none waits for the device.

    Args:
        config: the recipe.
        image_size: side S of a view in pixels.

    Attributes:
        operations: those of ``OPERATIONS`` that the recipe uses; the others cost nothing.

    Raises:
        UserError: an interpolation that does not exist, or an option out of its bounds.
    """

    def __init__(self, config: AugmentConfig, image_size: int) -> None:
        check_options(config, "augment")
        known = get_args(get_type_hints(AugmentConfig)["interpolation"])
        if config.interpolation not in known:
            raise UserError(f"augment.interpolation must be {' or '.join(known)}, not {config.interpolation}")
        self.config = config
        self.image_size = image_size
        self.operations = [used for used in (operation(config) for operation in OPERATIONS) if used.active]

    def views(self, pixels: Tensor, size: Tensor, index: Tensor, seed: Tensor | int, epoch: Tensor | int) -> Tensor:
        """Draw and make both views of a batch; crops are drawn only for whole images (V = 1).

        Args:
            pixels, size, index: as in ``Batch``.
            seed, epoch: integers, or int64 scalars on the device of ``index``.

        Returns:
            float32 [2B, 3, S, S], channels_last: the B first views, then the B second ones.
        """
        whole = pixels.shape[1] == 1
        return self.apply(pixels, self.sample_params(seed, epoch, index, size if whole else None))

    def sample_params(
        self, seed: Tensor | int, epoch: Tensor | int, index: Tensor, size: Tensor | None
    ) -> dict[str, Params]:
        """Draw the parameters of both views; an image's depend only on seed, epoch, its index and its size.

        Args:
            seed, epoch: integers, or int64 scalars on the device of ``index``.
            index: int64 [B], positions in the packed split.
            size: int32 [B, 2], heights and widths of whole images; None: the images are crops already.

        Returns:
            The parameters, tensors [B, 2, ...], by the name of each operation that the recipe uses. In addition,
            ``crop``, int64 [B, 2, 4], top, left, height, width in pixels (unless ``size`` is None),
            and ``flip``, bool [B, 2] (unless its probability is 0).
        """
        draws = self._draws(seed, epoch, index)
        params: dict[str, Params] = {}
        if size is not None:
            params["crop"] = pixel_boxes(self._sample_crops(draws, size), size)
        if self.config.flip > 0:
            params["flip"] = choose(draws, "flip", (self.config.flip, self.config.flip))
        return params | {operation.name: operation.sample(draws) for operation in self.operations}

    def sample_crops(self, seed: Tensor | int, epoch: Tensor | int, index: Tensor, size: Tensor) -> Tensor:
        """Draw only the crops of both views, for a loader that cuts them; arguments as for ``sample_params``.

        Returns:
            float32 [B, 2, 4]: top, left, height, width as fractions of the image; ``pixel_boxes`` gives the pixels.
        """
        return self._sample_crops(self._draws(seed, epoch, index), size)

    def apply(self, pixels: Tensor, params: dict[str, Params]) -> Tensor:
        """Make both views: crop, flip, the operations in their order, normalise.

        Args:
            pixels: uint8 [B, V, H, W, 3]. V = 1: whole images, to be cropped here. V = 2: the crops, H = W = S.
            params: of ``sample_params`` for these images.

        Returns:
            float32 [2B, 3, S, S], channels_last: the B first views, then the B second ones.

        Raises:
            ValueError: V = 2, but the crops are not S x S.
        """
        flip = params.get("flip")
        if pixels.shape[1] == 1:
            images = crop_resize(pixels[:, 0], params["crop"], self.image_size, self.config.interpolation, flip)
            planes = images.unbind(dim=1)
        else:
            planes = self._planes_of_crops(pixels, flip)
        for operation in self.operations:
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

    def _draws(self, seed: Tensor | int, epoch: Tensor | int, index: Tensor) -> Draws:
        return Draws(seed, epoch, index, streams=(0, 1), places=_PLACES)

    def _sample_crops(self, draws: Draws, size: Tensor) -> Tensor:
        return sample_crops(draws.uniform("crop", CROP_DRAWS), size, self.config.scale, self.config.ratio)

    def _planes_of_crops(self, pixels: Tensor, flip: Tensor | None) -> Planes:
        if pixels.shape[2:4] != (self.image_size, self.image_size):
            raise ValueError(f"an image's crops must have {self.image_size} pixels a side, not {pixels.shape[2:4]}")
        planes = (pixels.transpose(0, 1).flatten(0, 1) / 255).unbind(dim=-1)
        if flip is None:
            return planes
        return tuple(torch.where(flatten_views(flip), plane.flip(-1), plane) for plane in planes)

    def _normalise(self, planes: Planes) -> Tensor:
        scaled = zip(planes, self.config.mean, self.config.std, strict=True)
        return torch.stack([(plane - mean) / std for plane, mean, std in scaled], dim=-1).permute(0, 3, 1, 2)
