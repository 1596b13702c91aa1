"""Open what a config names, build its loader and its training step, and prepare the step (compiled, captured)."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.augment.groups import at_side
from pipelines.augment.views import Augment
from pipelines.batch import Batch, Views
from pipelines.convert import DIGITS_DIR, pack_digits_if_absent
from pipelines.formats.packed import Packed, open_packed
from pipelines.loading.base import BaseLoader
from pipelines.loading.build import build_loader
from vssl.collectives import Peers
from vssl.engine.batch_size_checks import check_sizes
from vssl.engine.capture import CapturedStep
from vssl.engine.compilation import compile_step
from vssl.engine.config import Config, Resolved
from vssl.engine.step import MakeViews, TrainStep
from vssl.evaluation.probe import OnlineProbe
from vssl.methods import build_method
from vssl.methods.base import Method
from vssl.methods.pairs import ViewCounts
from vssl.models.backbones import check_side
from vssl.models.random_layers import check_repeatable
from vssl.runtime.device import repeat_bits, resolve_device
from vssl.runtime.precision import resolve_amp
from vssl.runtime.processes import World

__all__ = [
    "build_step",
    "evaluation_loader",
    "initial_method",
    "make_views",
    "open_data",
    "open_run",
    "prepare_step",
    "training_loader",
]


def open_run(config: Config, world: World) -> tuple[torch.device, Packed]:
    """The device and the data (``open_data``) of a resolved config.

    Raises:
        UserError: there is no such device or data set, or its sizes do not fit (``check_sizes``).
    """
    device = resolve_device(config.train.device)
    if config.train.deterministic and device.type == "cuda":
        repeat_bits()
    world.set_device(device)
    packed = open_data(config, world)
    check_sizes(config, packed, world)
    return device, packed


def open_data(config: Config, world: World) -> Packed:
    """The data set ``data.dir``; the built-in digits are packed if they are absent. Raises UserError as
    ``open_packed``."""
    if Path(config.data.dir) == DIGITS_DIR and world.local_rank == 0:
        pack_digits_if_absent(DIGITS_DIR)
    world.agree()  # the other processes of a machine wait until its digits are packed
    return open_packed(config.data.dir)


def training_loader(
    config: Config, packed: Packed, device: torch.device, world: World, side: int | None = None
) -> BaseLoader:
    """The loader of this process's training images; ``side``: of the views, instead of ``data.image_size``."""
    full = config.data.image_size
    data = dataclasses.replace(config.data, image_size=side or full)
    augment = at_side(config.augment, full, data.image_size)
    seed, place = config.train.seed, {"rank": world.rank, "world_size": world.size}
    return build_loader(data, augment, packed, "train", train=True, seed=seed, device=device, **place)


def evaluation_loader(config: Config, packed: Packed, device: torch.device, world: World, split: str) -> BaseLoader:
    """A loader of this process's part of a split, without augmentation; of the split train, the images of the run."""
    seed, place = config.train.seed, {"rank": world.rank, "world_size": world.size}
    return build_loader(config.data, config.augment, packed, split, train=False, seed=seed, device=device, **place)


def initial_method(config: Config, peers: Peers | None = None) -> Method:
    """The method as a run of a resolved config starts with it: its weights drawn from ``train.seed`` or read from
    ``model.weights``; peers as in ``build_method``. Raises UserError as it does, if the network does not take local
    views or views of ``train.first_size``, and as ``check_repeatable``."""
    torch.manual_seed(config.train.seed)
    full, counts = config.data.image_size, ViewCounts.of(config.augment)
    method = build_method(config.method, config.model, full, views=counts, peers=peers)
    for side in {full, config.train.first_size or full}:
        if side != full:
            check_side(method.student.backbone, config.model.backbone, side)
        if counts.local:
            local = at_side(config.augment, full, side).local_size
            check_side(method.student.backbone, config.model.backbone, local)
    if ":" in config.model.backbone:  # torchvision's and our own ResNets have no random layers
        check_repeatable(method.student.backbone, config.model.backbone, full)
    return method


def make_views(augment: Augment, seed: int) -> MakeViews:
    """The function with which the step makes the views of ``augment``."""

    def make(pixels: Tensor, size: Tensor, index: Tensor, epoch: Tensor) -> Views:
        return augment.views(pixels, size, index, seed, epoch)

    return make


def build_step(
    config: Resolved,
    packed: Packed,
    device: torch.device,
    world: World | None = None,
    views: MakeViews | None = None,
) -> TrainStep:
    """The step of a resolved config, with the weights of ``initial_method``.

    Args:
        views: makes the views; None: the augmentation that the config describes.
    """
    world, seed = world or World(), config.train.seed
    method = initial_method(config, Peers(world.distributed))
    method = method.to(device, memory_format=torch.channels_last).train()
    probe = None
    if packed.splits["train"].labelled and config.eval.probe_lr > 0:
        probe = OnlineProbe(method.width, len(packed.classes), method.peers).to(device)
    views = views or make_views(Augment(config.augment, config.data.image_size), seed)
    return TrainStep(config, views, method, probe, device, resolve_amp(config.train.amp, device), world)


def prepare_step(step: TrainStep, batch: Batch) -> Callable[[Batch], None]:
    """``step``, prepared for batches like ``batch``: compiled as configured, and captured as a CUDA graph if it runs on
    a GPU, together with the exchanges between processes (by NCCL)."""
    wanted, world = step.config.train.compile, step.world
    if wanted or (wanted is None and step.epoch.is_cuda):
        compile_step(step, batch)
    if not step.epoch.is_cuda or (world.distributed and not dist.is_nccl_available()):
        return step
    return CapturedStep(step, step.config.data.batch_size // world.size, world.distributed)
