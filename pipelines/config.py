"""Options of the data and of the augmentation."""

from dataclasses import dataclass
from typing import Literal

from pipelines.formats import FormatName
from pipelines.options import option

__all__ = ["SMALL_IMAGE", "AugmentConfig", "DataConfig"]

SMALL_IMAGE = 64  # pixels per side: up to this, views count as small (CIFAR's stem and recipes, no blur by default)


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they reach the device."""

    dir: str = option("", "packed data set, as written by tools/convert.py", may_change=True, path=True)
    loader: Literal["auto", FormatName, "torch"] = option(
        "auto", "auto: by the manifest; torch reads every format", may_change=True
    )
    batch_size: int = option(256, "source images per step, over all processes", low=1)
    workers: int = option(0, "decoding threads (torch: processes) per process; 0: one per core", low=0, may_change=True)
    prefetch: int = option(3, "batches decoded ahead", low=1, may_change=True)
    crops: Literal["auto", "loader", "device"] = option(
        "auto",
        "who cuts the views out (ffcv, dali, torch); loader: only two full ones; auto: the device if it is a GPU (for "
        "torch: never) or the views are others",
        may_change=True,
    )
    hw_decoder_load: float = option(
        0.65,
        "dali on a GPU: share of each batch that its JPEG hardware decodes",
        low=0.0,
        high=1.0,
        may_change=True,
    )
    image_size: int = option(32, "side of a view in pixels", low=4)
    canvas: int = option(
        512, "longest side of a whole image handed to the device; larger images are scaled down to it", low=4
    )
    limit: int = option(0, "train on the first N images after a seeded shuffle; 0: all", low=0)
    drop_last: bool = option(True, "drop the last incomplete batch; which images it holds changes every epoch")


@dataclass(frozen=True)
class AugmentConfig:
    """The views of an image and their recipe (BYOL's, as in solo-learn). Pairs of probabilities are those of view 1 and
    view 2; further full views repeat them in turn. ``null`` means the method's recipe, or a default for the image's
    size."""

    views: int = option(2, "number of full views of an image", low=2, high=100)
    local_views: int | None = option(None, "number of local views (multi-crop): smaller crops", low=0, high=100)
    local_size: int | None = option(
        None, "side of a local view in pixels; null: half of image_size up to 64, else 3/7 of it", low=4
    )
    local_scale: tuple[float, float] | None = option(
        None, "local views: share of the image's area that a crop keeps", low=1e-6, high=1.0, ordered=True
    )
    local_blur: float | None = option(None, "local views: probability of a Gaussian blur", low=0.0, high=1.0)
    local_solarize: float = option(0.0, "local views: probability of solarization", low=0.0, high=1.0)
    local_weight: float = option(1.0, "weight in the loss of a pair with a local view; of two full views: 1", low=0.0)
    scale: tuple[float, float] = option(
        (0.08, 1.0), "full views: share of the image's area that a crop keeps", low=1e-6, high=1.0, ordered=True
    )
    ratio: tuple[float, float] = option((0.75, 4 / 3), "width over height of a crop", low=1e-3, high=1e3, ordered=True)
    interpolation: Literal["bilinear", "bicubic"] = option("bilinear", "of the resized crops, antialiased")
    flip: float = option(0.5, "probability of a horizontal flip", low=0.0, high=1.0)
    jitter: float = option(0.8, "probability that a view's colours are jittered at all", low=0.0, high=1.0)
    brightness: float = option(0.4, "factors are drawn from [1 - x, 1 + x]", low=0.0)
    contrast: float = option(0.4, "factors are drawn from [1 - x, 1 + x]", low=0.0)
    saturation: float = option(0.2, "factors are drawn from [1 - x, 1 + x]", low=0.0)
    hue: float = option(0.1, "shifts are drawn from [-x, x], in turns of the colour circle", low=0.0, high=0.5)
    gray: float = option(0.2, "probability that a view loses its colours", low=0.0, high=1.0)
    blur: tuple[float, float] = option((0.0, 0.0), "probabilities of a Gaussian blur", low=0.0, high=1.0)
    blur_sigma: tuple[float, float] = option(
        (0.1, 2.0), "sigma is drawn from this range, in pixels of the view", low=1e-3, ordered=True
    )
    solarize: tuple[float, float] = option((0.0, 0.2), "probabilities of solarization", low=0.0, high=1.0)
    eval_crop: float = option(
        1.0, "evaluation: side of the centre square, as a share of the image's shorter side", low=1e-3, high=1.0
    )
    mean: tuple[float, float, float] = option((0.485, 0.456, 0.406), "of each channel of pixels in [0, 1]")
    std: tuple[float, float, float] = option((0.229, 0.224, 0.225), "of each channel of pixels in [0, 1]", low=1e-6)
