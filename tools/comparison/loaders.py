"""Loaders side by side on the same images: images a second on a CPU, a whole epoch of each in turn.

Three tasks. *crops*: two random resized crops of each image, uint8, nothing else. *views*: the two augmented views of
BYOL's recipe, normalised; without blur below 64 pixels, as usual there. *whole*: every image decoded, none cropped.
Photographs (--source) are decoded by all; small images (--packed) lie in memory as pixels for all.
"""

import contextlib
import ctypes
import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2 as transforms

from comparison.images import Photographs, Pixels
from pipelines.augment import Augment, pixel_boxes
from pipelines.build import build_loader
from pipelines.packed import Packed
from pipelines.readers import Reader, open_reader
from pipelines.threads import single_thread
from pipelines.types import AugmentConfig, Batch, DataConfig, Loader
from vssl.throughput import Rate, Timer
from vssl.throughput.decoding import JpegDecoder

__all__ = ["CANDIDATES", "CPU", "Candidate", "Setting", "draw", "measure", "ratios_of", "summarise"]

CPU = torch.device("cpu")
TASKS = {"crops": "two crops", "whole": "whole images", "views": "two augmented views"}

Epoch = Callable[[], int]  # load every image once; returns how many


@dataclass(frozen=True)
class Setting:
    images: Photographs | Pixels
    data: DataConfig  # image_size, batch_size and workers hold for everybody
    closing: contextlib.ExitStack

    @property
    def recipe(self) -> AugmentConfig:
        """BYOL's (arXiv 2006.07733, appendix B)."""
        return AugmentConfig(blur=(0.0, 0.0) if self.data.image_size < 64 else (1.0, 0.1))


@dataclass(frozen=True)
class Candidate:
    task: str  # one of TASKS
    build: Callable[[Setting], Epoch]
    needs: str = ""  # module that must be installed
    reads: tuple[type, ...] = (Photographs,)

    def installed(self) -> bool:
        return not self.needs or importlib.util.find_spec(self.needs) is not None


def measure(images: Photographs | Pixels, data: DataConfig, names: list[str], repeats: int) -> dict[str, Rate]:
    """Time epochs of the candidates named, task by task: one of each in turn, after one of each to warm up."""
    rates = {}
    for task in TASKS:
        if task == "views":
            _keep_freed_memory()
        with contextlib.ExitStack() as closing:
            setting = Setting(images, data, closing)
            epochs = {name: CANDIDATES[name].build(setting) for name in names if CANDIDATES[name].task == task}
            rates |= Timer(CPU, repeats, seconds=1e-9).rates(epochs)
    return rates


def _keep_freed_memory() -> None:
    """Let the C library keep memory that is freed, here and in worker processes yet to start.

    By default glibc returns large blocks at once, and the kernel clears new ones page by page, which takes longer than
    what is computed in them: for augmentation at 224 pixels more than half of the time.
    """
    most = 2**31 - 1
    os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(most)}
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, most)  # M_TRIM_THRESHOLD


def summarise(rates: dict[str, Rate]) -> str:
    """A table, and what our loaders are measured by."""
    lines = [f"{'task':<6} {'loader':<34} {'images/s':>9} {'low - high':>15}"]
    for name, rate in rates.items():
        spread = f"{rate.low:,.0f} - {rate.high:,.0f}"
        lines.append(f"{CANDIDATES[name].task:<6} {name:<34} {rate.per_second:>9,.0f} {spread:>15}")
    ratios = ratios_of(rates)
    return "\n".join([*lines, *(f"{ours} / {other}: {ratio:.2f}" for (ours, other), ratio in ratios.items())])


def ratios_of(rates: dict[str, Rate]) -> dict[tuple[str, str], float]:
    """Medians' ratios, of the pairs in RATIOS that were measured."""
    return {
        (ours, other): rates[ours].per_second / rates[other].per_second
        for ours, other in RATIOS
        if ours in rates and other in rates
    }


def draw(rates: dict[str, Rate], title: str, path: Path) -> None:
    """A bar for each loader with its spread, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    used = [task for task in TASKS if any(CANDIDATES[name].task == task for name in rates)]
    groups = [{name: rate for name, rate in rates.items() if CANDIDATES[name].task == task} for task in used]
    figure = pyplot.figure(figsize=(9, 1.5 + 0.4 * len(rates)), layout="constrained")
    axes = figure.subplots(len(used), squeeze=False, height_ratios=list(map(len, groups)))[:, 0]
    for axis, task, group in zip(axes, used, groups, strict=True):
        medians = [rate.per_second for rate in group.values()]
        spread = [[r.per_second - r.low for r in group.values()], [r.high - r.per_second for r in group.values()]]
        colours = ["tab:blue" if name.startswith("vssl") else "tab:grey" for name in group]
        bars = axis.barh(list(group), medians, xerr=spread, color=colours)
        axis.bar_label(bars, [f" {median:,.0f}" for median in medians])
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_title(TASKS[task], loc="left", fontsize=10)
    axes[-1].set_xlabel("source images a second")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110, format="png")
    pyplot.close(figure)


# Ours


def _ours(kind: str, **changes: Any) -> Callable[[Setting], Epoch]:
    """The loader alone."""
    return lambda setting: _epochs_of(_open(setting, kind, **changes), lambda batch: None)


def _ours_augmented(kind: str) -> Callable[[Setting], Epoch]:
    """The loader, and the augmentation on the CPU: compiled, which the epochs that warm up wait for."""

    def build(setting: Setting) -> Epoch:
        loader, augment = _open(setting, kind), Augment(setting.recipe, setting.data.image_size)
        apply = torch.compile(augment.apply, fullgraph=True, dynamic=False)

        def work(batch: Batch) -> None:
            with single_thread():
                params = augment.sample_params(0, loader.state_dict()["epoch"], batch.index, batch.size)
            apply(batch.pixels, params)

        return _epochs_of(loader, work)

    return build


def _open(setting: Setting, kind: str, **changes: Any) -> Loader:
    images = setting.images
    if isinstance(images, Pixels):
        packed, changes = images.packed, changes | {"limit": images.count}
    else:
        packed = images.dali if kind == "dali" else images.ffcv
    data = replace(setting.data, loader=kind, canvas=_longest(packed), **changes)
    loader = build_loader(data, setting.recipe, packed, "train", train=True, seed=0, device=CPU)
    setting.closing.callback(loader.close)
    return loader


def _epochs_of(loader: Loader, work: Callable[[Any], object]) -> Epoch:
    def epoch() -> int:
        loader.set_epoch(loader.state_dict()["epoch"] + 1)
        count = 0
        for batch in loader:
            work(batch)
            count += len(batch.index)
        return count

    return epoch


def _longest(packed: Packed) -> int:
    split = packed.splits["train"]
    return max(split.max_height, split.max_width)


# Their floors


def _bare_dali(setting: Setting) -> Epoch:
    """The operators that our loader uses, with boxes that are there already, and outputs that nobody looks at."""
    from nvidia.dali import Pipeline, fn, types

    data = setting.data
    reader = open_reader(setting.images.dali, "train")
    index = np.random.default_rng(0).permutation(len(reader.labels))
    size = torch.from_numpy(reader.sizes[index])
    params = Augment(setting.recipe, data.image_size).sample_params(0, 0, torch.from_numpy(index), size)
    boxes = pixel_boxes(params.crop, size).int().numpy()
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


def _bare_libjpeg(setting: Setting) -> Epoch:
    data, packed = setting.data, setting.images.ffcv
    decoder = JpegDecoder(packed.dir / "train.beton", data.workers)
    setting.closing.callback(decoder.close)
    order = np.random.default_rng(0).permutation(packed.splits["train"].count)
    batches = [order[at : at + data.batch_size] for at in range(0, len(order), data.batch_size)]
    return lambda: sum(decoder.batches([(index, np.ones_like(index)) for index in batches], data.prefetch))


def _bare_planes(setting: Setting) -> Epoch:
    """libjpeg-turbo without the last step to RGB: half the bytes, for a device that would do the rest."""
    from turbojpeg import TurboJPEG

    decoder, files = TurboJPEG(), [file.read_bytes() for file in setting.images.files]
    pool = setting.closing.enter_context(ThreadPoolExecutor(setting.data.workers))

    def decode(share: list[bytes]) -> int:
        for data in share:
            decoder.decode_to_yuv_planes(data)
        return len(share)

    shares = [files[at : at + setting.data.batch_size] for at in range(0, len(files), setting.data.batch_size)]
    return lambda: sum(pool.map(decode, shares))


# Peers


def _upstream_ffcv(setting: Setting) -> Epoch:
    """ffcv's own loader: two fields out of one, each with a decoder of its own."""
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
        str(setting.images.ffcv.dir / "train.beton"),
        batch_size=data.batch_size,
        num_workers=data.workers,
        os_cache=True,
        order=OrderOption.RANDOM,
        drop_last=False,
        pipelines={"image": None, "label": None, **views},
    )
    return lambda: sum(len(first) for first, _ in loader)


class _Images(Dataset):
    """What ``transform`` makes of each image, as ``read`` gives it."""

    def __init__(self, items: list, read: Callable[[Any], Any], transform: Callable[[Any], Any]) -> None:
        self._items, self._read, self._transform = items, read, transform

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._transform(self._read(self._items[index]))


class _Twice:
    """One transform of each kind, on the same image."""

    def __init__(self, *transforms: Callable) -> None:
        self._transforms = transforms

    def __call__(self, image: Any) -> list:
        return [transform(image) for transform in self._transforms]


def read_pil(file: str) -> Image.Image:
    return Image.open(file).convert("RGB")


class _PixelsAsPIL:
    """An image of an array, as torchvision's CIFAR data sets give it."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __call__(self, index: int) -> Image.Image:
        return Image.fromarray(self._reader.image(index))


def read_tensor(file: str) -> torch.Tensor:
    return decode_image(file, ImageReadMode.RGB)


def _torchvision_crops(read: Callable) -> Callable[[Setting], Epoch]:
    def build(setting: Setting) -> Epoch:
        crop = transforms.RandomResizedCrop(setting.data.image_size, antialias=True)
        view = transforms.Compose([crop, transforms.PILToTensor()]) if read is read_pil else crop
        return _data_loader(setting, _Images(list(map(str, setting.images.files)), read, _Twice(view, view)))

    return build


def _torchvision_views(setting: Setting) -> Epoch:
    size, recipe = setting.data.image_size, setting.recipe

    def view(blur: float, solarize: float) -> Callable:
        jitter = transforms.ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
        blurring = transforms.RandomApply([transforms.GaussianBlur(size // 10 | 1, recipe.blur_sigma)], blur)
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=recipe.scale, antialias=True),
                transforms.RandomHorizontalFlip(recipe.flip),
                transforms.RandomApply([jitter], recipe.jitter),
                transforms.RandomGrayscale(recipe.grey),
                *([blurring] if blur > 0 else []),
                transforms.RandomSolarize(128, solarize),
                transforms.PILToTensor(),
                transforms.ToDtype(torch.float32, scale=True),
                transforms.Normalize(recipe.mean, recipe.std),
            ]
        )

    return _data_loader(setting, _as_pil(setting, _Twice(*map(view, recipe.blur, recipe.solarize))))


def _lightly_views(setting: Setting) -> Epoch:
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
        multiprocessing_context="forkserver",  # forking a process with others' threads is unsafe
    )
    return lambda: sum(len(views[0]) for views in loader)


CANDIDATES = {
    "vssl ffcv": Candidate("crops", _ours("ffcv"), "ffcv"),
    "vssl dali": Candidate("crops", _ours("dali"), "nvidia"),
    "vssl torch": Candidate("crops", _ours("torch"), "ffcv"),
    "ffcv, two decoders": Candidate("crops", _upstream_ffcv, "ffcv"),
    "DALI, the same operators bare": Candidate("crops", _bare_dali, "nvidia"),
    "torchvision, tensors": Candidate("crops", _torchvision_crops(read_tensor)),
    "torchvision, PIL": Candidate("crops", _torchvision_crops(read_pil)),
    "vssl ffcv, augmented": Candidate("views", _ours_augmented("ffcv"), "ffcv"),
    "vssl dali, augmented": Candidate("views", _ours_augmented("dali"), "nvidia"),
    "vssl resident, augmented": Candidate("views", _ours_augmented("resident"), reads=(Pixels,)),
    "torchvision, BYOL's recipe": Candidate("views", _torchvision_views, reads=(Photographs, Pixels)),
    "lightly, BYOLTransform": Candidate("views", _lightly_views, "lightly", reads=(Photographs, Pixels)),
    "vssl ffcv, whole images": Candidate("whole", _ours("ffcv", crops="device"), "ffcv"),
    "libjpeg-turbo alone": Candidate("whole", _bare_libjpeg, "ffcv"),
    "libjpeg-turbo, planes of YCbCr": Candidate("whole", _bare_planes, "turbojpeg"),
}

# Ours, and what it is held against.
RATIOS = [
    ("vssl ffcv", "ffcv, two decoders"),
    ("vssl dali", "DALI, the same operators bare"),
    ("vssl ffcv, whole images", "libjpeg-turbo alone"),
    ("vssl ffcv, augmented", "lightly, BYOLTransform"),
    ("vssl ffcv, augmented", "torchvision, BYOL's recipe"),
    ("vssl resident, augmented", "lightly, BYOLTransform"),
    ("vssl resident, augmented", "torchvision, BYOL's recipe"),
]
