"""Loaders side by side on the same images: images per second on a CPU, a whole epoch of each in turn.

Three tasks. *crops*: two random resized crops of each image, uint8, nothing else. *views*: the two augmented views of
BYOL's recipe, normalised; without blur below 64 pixels, as usual there. *whole*: every image decoded, none cropped.
Photographs (--source) are decoded by all; small images (--packed) lie in memory as pixels for all.
"""

import contextlib
import ctypes
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipelines.augment.views import Augment
from pipelines.batch import Batch, Loader
from pipelines.config import DataConfig
from pipelines.formats.packed import Packed
from pipelines.loading.build import build_loader
from tools.bench import peers
from tools.bench.images import Photographs, Pixels
from tools.bench.setting import Epoch, Setting
from tools.bench.timing import Rate, Timer

__all__ = ["CANDIDATES", "CPU", "Candidate", "draw", "measure", "ratios_of", "summarise"]

CPU = torch.device("cpu")
TASKS = {"crops": "two crops", "whole": "whole images", "views": "two augmented views"}


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
        colours = ["tab:blue" if name.startswith("vssl") else "tab:gray" for name in group]
        bars = axis.barh(list(group), medians, xerr=spread, color=colours)
        axis.bar_label(bars, [f" {median:,.0f}" for median in medians])
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_title(TASKS[task], loc="left", fontsize=10)
    axes[-1].set_xlabel("source images per second")
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
        views = torch.compile(augment.views, fullgraph=True, dynamic=False)

        def work(batch: Batch) -> None:
            epoch = torch.tensor(loader.state_dict()["epoch"])  # an integer would be compiled in, once per epoch
            views(batch.pixels, batch.size, batch.index, 0, epoch)

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


CANDIDATES = {
    "vssl ffcv": Candidate("crops", _ours("ffcv"), "ffcv"),
    "vssl dali": Candidate("crops", _ours("dali"), "nvidia"),
    "vssl torch": Candidate("crops", _ours("torch"), "ffcv"),
    "ffcv, two decoders": Candidate("crops", peers.upstream_ffcv, "ffcv"),
    "DALI, the same operators bare": Candidate("crops", peers.bare_dali, "nvidia"),
    "torchvision, tensors": Candidate("crops", peers.torchvision_crops(peers.read_tensor)),
    "torchvision, PIL": Candidate("crops", peers.torchvision_crops(peers.read_pil)),
    "vssl ffcv, augmented": Candidate("views", _ours_augmented("ffcv"), "ffcv"),
    "vssl dali, augmented": Candidate("views", _ours_augmented("dali"), "nvidia"),
    "vssl resident, augmented": Candidate("views", _ours_augmented("resident"), reads=(Pixels,)),
    "torchvision, BYOL's recipe": Candidate("views", peers.torchvision_views, reads=(Photographs, Pixels)),
    "lightly, BYOLTransform": Candidate("views", peers.lightly_views, "lightly", reads=(Photographs, Pixels)),
    "vssl ffcv, whole images": Candidate("whole", _ours("ffcv", crops="device"), "ffcv"),
    "libjpeg-turbo alone": Candidate("whole", partial(peers.bare_libjpeg, aligned=True), "ffcv"),
    "libjpeg-turbo, to an odd address": Candidate("whole", peers.bare_libjpeg, "ffcv"),
    "libjpeg-turbo, planes of YCbCr": Candidate("whole", peers.bare_planes, "turbojpeg"),
}

# Ours, and what it is held against.
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
