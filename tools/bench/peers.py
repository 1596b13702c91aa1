"""Baselines for our loaders: the same libraries without our code (floors), and other loaders (peers)."""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2 as transforms

from pipelines.augment.views import Augment, pixel_boxes
from pipelines.formats.packed import open_reader
from pipelines.formats.protocol import Reader
from tools.bench.images import Pixels
from tools.bench.setting import Epoch, Setting
from vssl.profile.decoding import JpegDecoder

__all__ = [
    "bare_dali",
    "bare_libjpeg",
    "bare_planes",
    "lightly_views",
    "read_pil",
    "read_tensor",
    "torchvision_crops",
    "torchvision_views",
    "upstream_ffcv",
]


# Floors


def bare_dali(setting: Setting) -> Epoch:
    """The DALI operators that our loader uses, with boxes computed beforehand; the outputs are discarded."""
    from nvidia.dali import Pipeline, fn, types

    data = setting.data
    reader: Any = open_reader(setting.photographs.dali, "train")  # its reader gives the encoded files
    index = np.random.default_rng(0).permutation(len(reader.labels))
    size = torch.from_numpy(reader.sizes[index])
    crop = Augment(setting.recipe, data.image_size).sample_crops(0, 0, torch.from_numpy(index), size)
    boxes = pixel_boxes(crop, size).int().numpy()
    batches = []
    for start in range(0, len(index), data.batch_size):
        part = slice(start, start + data.batch_size)
        sides = [boxes[part, view, side : side + 2] for view in (0, 1) for side in (0, 2)]
        batches.append(([reader.encoded(i) for i in index[part].tolist()], *map(np.ascontiguousarray, sides)))
    pipeline = Pipeline(data.batch_size, data.workers, device_id=None, prefetch_queue_depth=data.prefetch)
    with pipeline:
        encoded, *sides = fn.external_source(
            batches, num_outputs=5, dtype=[types.UINT8, *[types.INT32] * 4], ndim=1, no_copy=True, cycle="raise"
        )
        images = fn.decoders.image(encoded, device="cpu")
        crops = [fn.slice(images, *box, axes=(0, 1)) for box in (sides[:2], sides[2:])]
        pipeline.set_outputs(fn.stack(*fn.resize(crops, size=(data.image_size, data.image_size))))
    pipeline.build()

    def epoch() -> int:
        count = 0
        with contextlib.suppress(StopIteration):
            while True:
                (pixels,) = pipeline.run()
                count += len(pixels)
        pipeline.reset()
        return count

    return epoch


def bare_libjpeg(setting: Setting, *, aligned: bool = False) -> Epoch:
    data, packed = setting.data, setting.photographs.ffcv
    decoder = JpegDecoder(packed.dir / "train.beton", data.workers, aligned=aligned)
    setting.closing.callback(decoder.close)
    order = np.random.default_rng(0).permutation(packed.splits["train"].count)
    batches = [order[at : at + data.batch_size] for at in range(0, len(order), data.batch_size)]
    return lambda: sum(decoder.batches([(index, np.ones_like(index)) for index in batches], data.prefetch))


def bare_planes(setting: Setting) -> Epoch:
    """libjpeg-turbo without the conversion to RGB: half the bytes; a device would have to convert them."""
    from turbojpeg import TurboJPEG

    decoder, files = TurboJPEG(), [file.read_bytes() for file in setting.photographs.files]
    pool = setting.closing.enter_context(ThreadPoolExecutor(setting.data.workers))

    def decode(share: list[bytes]) -> int:
        for data in share:
            decoder.decode_to_yuv_planes(data)
        return len(share)

    shares = [files[at : at + setting.data.batch_size] for at in range(0, len(files), setting.data.batch_size)]
    return lambda: sum(pool.map(decode, shares))


# Peers


def upstream_ffcv(setting: Setting) -> Epoch:
    """ffcv's own loader: two output fields from one input field, each with its own decoder."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline import PipelineSpec
    from ffcv.transforms import ToTensor

    data = setting.data
    views = {
        f"view{number}": PipelineSpec(
            "image", RandomResizedCropRGBImageDecoder((data.image_size, data.image_size)), [ToTensor()]
        )
        for number in (1, 2)
    }
    loader = Loader(
        str(setting.photographs.ffcv.dir / "train.beton"),
        batch_size=data.batch_size,
        num_workers=data.workers,
        os_cache=True,
        order=OrderOption.RANDOM,
        drop_last=False,
        pipelines={"image": None, "label": None, **views},
    )
    return lambda: sum(len(first) for first, _ in loader)


class _Images(Dataset):
    """Each image, read by ``read`` and transformed by ``transform``."""

    def __init__(self, items: list, read: Callable[[Any], Any], transform: Callable[[Any], Any]) -> None:
        self._items, self._read, self._transform = items, read, transform

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._transform(self._read(self._items[index]))


class _Twice:
    """Applies each transform to the same image."""

    def __init__(self, *transforms: Callable) -> None:
        self._transforms = transforms

    def __call__(self, image: Any) -> list:
        return [transform(image) for transform in self._transforms]


def read_pil(file: str) -> Image.Image:
    return Image.open(file).convert("RGB")


class _PixelsAsPIL:
    """A PIL image from stored pixels, as in torchvision's CIFAR data sets."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __call__(self, index: int) -> Image.Image:
        return Image.fromarray(self._reader.image(index))


def read_tensor(file: str) -> torch.Tensor:
    return decode_image(file, ImageReadMode.RGB)


def torchvision_crops(read: Callable) -> Callable[[Setting], Epoch]:
    def build(setting: Setting) -> Epoch:
        crop = transforms.RandomResizedCrop(setting.data.image_size, antialias=True)
        view = transforms.Compose([crop, transforms.PILToTensor()]) if read is read_pil else crop
        return _data_loader(setting, _Images(list(map(str, setting.photographs.files)), read, _Twice(view, view)))

    return build


def torchvision_views(setting: Setting) -> Epoch:
    size, recipe = setting.data.image_size, setting.recipe

    def view(blur: float, solarize: float) -> Callable:
        jitter = transforms.ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
        blurring = transforms.RandomApply([transforms.GaussianBlur(size // 10 | 1, recipe.blur_sigma)], blur)
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=recipe.scale, antialias=True),
                transforms.RandomHorizontalFlip(recipe.flip),
                transforms.RandomApply([jitter], recipe.jitter),
                transforms.RandomGrayscale(recipe.gray),
                *([blurring] if blur > 0 else []),
                transforms.RandomSolarize(128, solarize),
                transforms.PILToTensor(),
                transforms.ToDtype(torch.float32, scale=True),
                transforms.Normalize(recipe.mean, recipe.std),
            ]
        )

    return _data_loader(setting, _as_pil(setting, _Twice(*map(view, recipe.blur, recipe.solarize))))


def lightly_views(setting: Setting) -> Epoch:
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform

    size, (first, second) = setting.data.image_size, setting.recipe.blur
    views = BYOLView1Transform(size, gaussian_blur=first), BYOLView2Transform(size, gaussian_blur=second)
    return _data_loader(setting, _as_pil(setting, BYOLTransform(*views)))


def _as_pil(setting: Setting, transform: Callable) -> _Images:
    images = setting.images
    if isinstance(images, Pixels):
        return _Images(list(range(images.count)), _PixelsAsPIL(open_reader(images.packed, "train")), transform)
    return _Images(list(map(str, images.files)), read_pil, transform)


def _data_loader(setting: Setting, images: _Images) -> Epoch:
    loader = DataLoader(
        images,
        batch_size=setting.data.batch_size,
        shuffle=True,
        num_workers=setting.data.workers,
        persistent_workers=True,
        multiprocessing_context="forkserver",  # forking a process with running threads is unsafe
    )
    return lambda: sum(len(views[0]) for views in loader)
