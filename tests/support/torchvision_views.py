"""Views made by torchvision's functions, image by image, from the parameters that ours draw."""

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from pipelines.augment.operation import Params
from pipelines.config import AugmentConfig


def canvas(count: int, height: int, width: int, views: int = 1) -> tuple[Tensor, Tensor]:
    """Random pixels uint8 [count, views, height, width, 3] and different sizes inside them."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, views, height, width, 3), dtype=torch.uint8, generator=generator)
    sizes = [torch.randint(max(1, side // 2), side + 1, (count,), generator=generator) for side in (height, width)]
    size = torch.stack(sizes, dim=1).int()
    size[0] = torch.tensor([height, width])
    return pixels, size


def tensors(params: dict[str, Params]) -> dict[str, Tensor]:
    """All parameters drawn, by name; those of the jitter under their own names."""
    jitter = params["jitter"]._asdict() if "jitter" in params else {}
    return {name: value for name, value in (params | jitter).items() if isinstance(value, Tensor)}


def torchvision_view(image: Tensor, config: AugmentConfig, params: dict[str, Params], place: int, view: int) -> Tensor:
    """One view of one image float32 [3, S, S], from its crop on, by torchvision's functions."""
    drawn = {name: value[place, view] for name, value in tensors(params).items()}
    if drawn["flip"]:
        image = reference.horizontal_flip(image)
    adjust = [
        lambda x: reference.adjust_brightness(x, drawn["brightness"].item()),
        lambda x: reference.adjust_contrast(x, drawn["contrast"].item()),
        lambda x: reference.adjust_saturation(x, drawn["saturation"].item()),
        lambda x: reference.adjust_hue(x, drawn["hue"].item()),
    ]
    for operation in drawn["order"].argsort().tolist():
        image = adjust[operation](image)
    if drawn["gray"]:
        image = reference.rgb_to_grayscale(image, num_output_channels=3)
    if drawn.get("blur", 0) > 0:
        kernel = 2 * max(1, image.shape[-1] // 20) + 1
        image = reference.gaussian_blur(image, [kernel, kernel], [drawn["blur"].item()] * 2)
    if drawn["solarize"]:
        image = reference.solarize(image, 128 / 255)
    return reference.normalize(image, list(config.mean), list(config.std))


def resized(image: Tensor, box: list[int], side: int, config: AugmentConfig) -> Tensor:
    mode = InterpolationMode(config.interpolation)
    image = image.permute(2, 0, 1) / 255
    return reference.resized_crop(image, *box, [side, side], interpolation=mode, antialias=True).clamp(0, 1)


def check_view(ours: Tensor, theirs: Tensor, config: AugmentConfig) -> None:
    """Equal within rounding, except where rounding moves a value across solarize's threshold."""
    std = torch.tensor(config.std)[:, None, None]
    difference = (ours - theirs).abs() * std
    assert difference.max() < 1 / 255 + 1e-5
    assert (difference > 1e-5).double().mean() < 0.01
