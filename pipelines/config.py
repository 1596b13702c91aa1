"""Options of the data and of the augmentation."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["AugmentConfig", "DataConfig"]


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they reach the device."""

    dir: str = ""  # packed data set, as written by tools/convert.py
    loader: str = "auto"  # auto (by the manifest) | ffcv | dali | resident | torch
    batch_size: int = 256  # source images a step, over all ranks
    workers: int = 0  # decoding threads or processes a rank; 0: one a core
    prefetch: int = 3  # batches decoded ahead
    crops: Literal["auto", "loader", "device"] = (
        "auto"  # who cuts both views out (ffcv, dali); auto: the device if a GPU
    )
    hw_decoder_load: float = 0.65  # dali on a GPU: share of each batch that its JPEG hardware decodes
    image_size: int = 32  # side of a view in pixels
    canvas: int = 512  # longest side of a whole image handed to the device; larger images are scaled down to it
    limit: int = 0  # train on the first N images after a seeded shuffle; 0: all
    drop_last: bool = True  # drop the last fewer-than-a-batch images of an epoch (others each epoch)


@dataclass(frozen=True)
class AugmentConfig:
    """The two-view recipe (BYOL's, as in solo-learn). Pairs give view 1 and view 2; probabilities lie in [0, 1]."""

    scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area that a crop keeps
    ratio: tuple[float, float] = (0.75, 4 / 3)  # width over height of a crop
    interpolation: str = "bilinear"  # bilinear | bicubic, both antialiased
    flip: float = 0.5
    jitter: float = 0.8  # probability that a view's colours are jittered at all
    brightness: float = 0.4  # factors from [1 - x, 1 + x]
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1  # shift from [-x, x], in turns of the colour circle (at most 0.5)
    gray: float = 0.2
    blur: tuple[float, float] = (0.0, 0.0)
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels of the view
    solarize: tuple[float, float] = (0.0, 0.2)
    eval_crop: float = 1.0  # evaluation: side of the centre square kept, as a share of the image's shorter side
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of pixels in [0, 1]
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
