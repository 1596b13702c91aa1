"""Compare loaders on the same images: images per second on a CPU, one epoch of each in turn.

Three tasks. *crops*: two random resized crops of each image, uint8, nothing else. *views*: the two augmented views of
BYOL's recipe, normalised; without blur up to 64 pixels, as is usual. *whole*: every image decoded, none cropped.
All loaders decode photographs (--source); small images (--packed) are pixels in memory for all of them.
"""

import argparse
import contextlib
import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from typing import Any

import torch

from pipelines.augment.views import Augment
from pipelines.batch import Batch, Loader
from pipelines.config import DataConfig
from pipelines.errors import UserError
from pipelines.files import write_json
from pipelines.formats.packed import Packed
from pipelines.loading.build import build_loader
from pipelines.loading.threads import worker_count
from tools.bench import peers
from tools.bench.charts import draw_loaders
from tools.bench.images import Photographs, Pixels, open_pixels, prepare_photographs
from tools.bench.setting import Epoch, Setting
from vssl.charts import save_chart
from vssl.commands.arguments import installed
from vssl.commands.results import check_outputs, report_head
from vssl.profile.timing import Rate, Timer

__all__ = ["CANDIDATES", "Candidate", "compare_loaders"]

_CPU = torch.device("cpu")
TASKS = ("crops", "whole", "views")


@dataclass(frozen=True)
class Candidate:
    task: str  # one of TASKS
    build: Callable[[Setting], Epoch]
    needs: str = ""  # module that must be installed
    reads: tuple[type, ...] = (Photographs,)

    def installed(self) -> bool:
        return not self.needs or installed(self.needs)


def compare_loaders(arguments: argparse.Namespace) -> None:
    """Run ``tools/compare.py loaders``.

    Raises:
        UserError: an unknown loader, no images, or a file that cannot be written.
    """
    check_outputs(arguments.json, arguments.plot, allow_dirty=arguments.allow_dirty)
    names = choose(arguments.only, Pixels if arguments.packed else Photographs)
    head = report_head(_CPU)
    data = DataConfig(batch_size=arguments.batch_size, workers=arguments.workers)
    data = replace(data, workers=worker_count(data), drop_last=False)
    images: Photographs | Pixels
    if arguments.packed:
        images = open_pixels(arguments.packed, arguments.images or 10_000)
        described = images.describe()
    else:
        longest = arguments.max_resolution or None
        images = prepare_photographs(arguments.source, arguments.work, arguments.images or 1000, longest, data.workers)
        described = {"max_resolution": longest, **images.describe()}
    data = replace(data, image_size=arguments.image_size or (images.side if isinstance(images, Pixels) else 224))
    rates = measure(images, data, names, arguments.repeats)
    print(summarise(rates))
    report = {
        **head,
        "environment": head["environment"] | {"lightly": _version("lightly")},
        "images": described,
        "loading": {key: getattr(data, key) for key in ("image_size", "batch_size", "workers", "prefetch")},
        "loaders": {name: {"task": CANDIDATES[name].task, **rate.report()} for name, rate in rates.items()},
        "ratios": {" / ".join(pair): ratio for pair, ratio in ratios_of(rates).items()},
    }
    if arguments.json:
        write_json(arguments.json, report)
    if arguments.plot:
        save_chart(draw_loaders(report), arguments.plot)


def choose(names: list[str] | None, kind: type) -> list[str]:
    """The named loaders, or all that read such images. Prints a line for each that is not installed and leaves it out.

    Raises:
        UserError: an unknown loader, or one that reads other images.
    """
    chosen = []
    for name in names or [name for name, candidate in CANDIDATES.items() if kind in candidate.reads]:
        if name not in CANDIDATES:
            raise UserError(f"no loader {name!r}; there are {'; '.join(CANDIDATES)}")
        candidate = CANDIDATES[name]
        if kind not in candidate.reads:
            raise UserError(f"{name!r} reads {' or '.join(map(_option, candidate.reads))}, not {_option(kind)}")
        if candidate.installed():
            chosen.append(name)
        else:
            print(f"left out: {name}; pip install -e '.[ffcv,dali]' -r requirements-compare.txt -c constraints.txt")
    return chosen


def _option(kind: type) -> str:
    return {Photographs: "--source", Pixels: "--packed"}[kind]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def measure(images: Photographs | Pixels, data: DataConfig, names: list[str], repeats: int) -> dict[str, Rate]:
    """Time epochs of the named candidates, task by task: after a warm-up, one epoch of each in turn."""
    rates: dict[str, Rate] = {}
    for task in TASKS:
        if task == "views":
            _keep_freed_memory()
        with contextlib.ExitStack() as closing:
            setting = Setting(images, data, closing)
            epochs = {name: CANDIDATES[name].build(setting) for name in names if CANDIDATES[name].task == task}
            rates |= Timer(_CPU, repeats, seconds=1e-9).rates(epochs)
    return rates


def _keep_freed_memory() -> None:
    """Let the C library keep freed memory, in this process and in worker processes started later.

    By default glibc returns large blocks at once, and the kernel clears new ones page by page. This can take
    longer than the computation: for augmentation at 224 pixels more than half of the time.
    """
    most = 2**31 - 1
    os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(most)}
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, most)  # M_TRIM_THRESHOLD


def summarise(rates: dict[str, Rate]) -> str:
    """A table of the rates, and the ratios of our loaders to others."""
    lines = [f"{'task':<6} {'loader':<34} {'images/s':>9} {'low - high':>15}"]
    for name, rate in rates.items():
        spread = f"{rate.low:,.0f} - {rate.high:,.0f}"
        lines.append(f"{CANDIDATES[name].task:<6} {name:<34} {rate.per_second:>9,.0f} {spread:>15}")
    ratios = ratios_of(rates)
    return "\n".join([*lines, *(f"{ours} / {other}: {ratio:.2f}" for (ours, other), ratio in ratios.items())])


def ratios_of(rates: dict[str, Rate]) -> dict[tuple[str, str], float]:
    """Ratios of medians, for the pairs in RATIOS that were measured."""
    return {
        (ours, other): rates[ours].per_second / rates[other].per_second
        for ours, other in RATIOS
        if ours in rates and other in rates
    }


# Ours


def _ours(kind: str, **changes: Any) -> Callable[[Setting], Epoch]:
    """The loader alone."""
    return lambda setting: _epochs_of(_open(setting, kind, **changes), lambda batch: None)


def _ours_augmented(kind: str) -> Callable[[Setting], Epoch]:
    """The loader, and the augmentation on the CPU, which is compiled during the warm-up."""

    def build(setting: Setting) -> Epoch:
        loader, augment = _open(setting, kind), Augment(setting.recipe, setting.data.image_size)
        views = torch.compile(augment.views, fullgraph=True, dynamic=False)

        def work(batch: Batch) -> None:
            # A tensor: an integer would be compiled as a constant, once per epoch.
            epoch = torch.tensor(loader.state_dict()["epoch"])
            views(batch.pixels, batch.size, batch.index, 0, epoch)

        return _epochs_of(loader, work)

    return build


def _open(setting: Setting, kind: str, **changes: Any) -> Loader:
    images = setting.images
    if isinstance(images, Pixels):
        packed, changes = images.packed, changes | {"limit": images.count}
    else:
        packed = images.dali if kind == "dali" else images.ffcv
    changes |= {"loader": kind, "canvas": _longest(packed)}
    data = replace(setting.data, **changes)
    loader = build_loader(data, setting.recipe, packed, "train", train=True, seed=0, device=_CPU)
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


CANDIDATES = {
    "vssl ffcv": Candidate("crops", _ours("ffcv"), "ffcv"),
    "vssl dali": Candidate("crops", _ours("dali"), "nvidia.dali"),
    "vssl torch": Candidate("crops", _ours("torch"), "ffcv"),
    "ffcv, two decoders": Candidate("crops", peers.upstream_ffcv, "ffcv"),
    "DALI, the same operators bare": Candidate("crops", peers.bare_dali, "nvidia.dali"),
    "torchvision, tensors": Candidate("crops", peers.torchvision_crops(peers.read_tensor)),
    "torchvision, PIL": Candidate("crops", peers.torchvision_crops(peers.read_pil)),
    "vssl ffcv, augmented": Candidate("views", _ours_augmented("ffcv"), "ffcv"),
    "vssl dali, augmented": Candidate("views", _ours_augmented("dali"), "nvidia.dali"),
    "vssl resident, augmented": Candidate("views", _ours_augmented("resident"), reads=(Pixels,)),
    "torchvision, BYOL's recipe": Candidate("views", peers.torchvision_views, reads=(Photographs, Pixels)),
    "lightly, BYOLTransform": Candidate("views", peers.lightly_views, "lightly", reads=(Photographs, Pixels)),
    "vssl ffcv, whole images": Candidate("whole", _ours("ffcv", crops="device"), "ffcv"),
    "libjpeg-turbo alone": Candidate("whole", partial(peers.bare_libjpeg, aligned=True), "ffcv"),
    "libjpeg-turbo, to an odd address": Candidate("whole", peers.bare_libjpeg, "ffcv"),
    "libjpeg-turbo, planes of YCbCr": Candidate("whole", peers.bare_planes, "turbojpeg"),
}

# Our loaders and their baselines.
RATIOS = [
    ("vssl ffcv", "ffcv, two decoders"),
    ("vssl dali", "DALI, the same operators bare"),
    ("vssl ffcv, whole images", "libjpeg-turbo alone"),
    ("vssl ffcv, whole images", "libjpeg-turbo, to an odd address"),
    ("vssl ffcv, augmented", "lightly, BYOLTransform"),
    ("vssl ffcv, augmented", "torchvision, BYOL's recipe"),
    ("vssl resident, augmented", "lightly, BYOLTransform"),
    ("vssl resident, augmented", "torchvision, BYOL's recipe"),
]
