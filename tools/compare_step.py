#!/usr/bin/env python
"""Our BYOL step beside a plain one: eager, AMP, channels_last, written with torchvision and torch.optim.

Both train the same network with the same heads, loss, optimizer (SGD with momentum) and precision on the same batch, a
block of each in turn. The plain step finds its two views ready made, and cuDNN may try all its algorithms for it; ours
is measured on ready views too, and besides with the augmentation that it does itself.

Example:
  python tools/compare_step.py -c configs/cifar10_fast.yaml --json step.json
"""

import argparse
import copy
import json
import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.augment.views import Augment
from pipelines.batch import Batch
from pipelines.errors import UserError, run_command
from pipelines.files import write_atomically
from pipelines.formats.packed import open_packed
from pipelines.loading.build import build_loader
from tools.bench.timing import Timer
from vssl.config import Config, load_config, to_dict
from vssl.engine.compilation import compile_step
from vssl.engine.environment import describe_environment
from vssl.engine.precision import resolve_amp, resolve_device
from vssl.engine.step import TrainStep
from vssl.engine.trainer import build_step, prepare_step
from vssl.recipes import resolve

LEARNING_RATE, TAU = 1e-3, 0.99  # weights must stay finite; the time does not depend on them


class PlainStep:
    """BYOL (arXiv 2006.07733) as it is usually written, each view through each network by itself."""

    def __init__(self, config: Config, device: torch.device) -> None:
        if not hasattr(torchvision.models, config.model.backbone):
            raise UserError(f"model.backbone={config.model.backbone} is none of torchvision's: use resnet18")
        self.device, self.amp = device, resolve_amp(config.train.amp, device)
        backbone = getattr(torchvision.models, config.model.backbone)(weights=None)
        width, hidden, latent = backbone.fc.in_features, config.model.projector_hidden, config.model.latent
        backbone.fc = nn.Identity()
        if config.model.stem == "cifar" or (config.model.stem == "auto" and config.data.image_size <= 64):
            backbone.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            backbone.maxpool = nn.Identity()
        self.online = nn.Sequential(backbone, _mlp(width, hidden, latent))
        self.predictor = _mlp(latent, config.model.predictor_hidden, latent)
        for network in (self.online, self.predictor):
            network.to(device, memory_format=torch.channels_last).train()
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        weights = [*self.online.parameters(), *self.predictor.parameters()]
        self.optimizer = torch.optim.SGD(
            weights, LEARNING_RATE, momentum=config.optim.momentum, weight_decay=config.optim.weight_decay
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp == torch.float16)

    def __call__(self, first: Tensor, second: Tensor) -> None:
        """Train on the two views of a batch, [B, 3, S, S]."""
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None):
            with torch.no_grad():
                target_1, target_2 = self.target(first), self.target(second)
            prediction_1, prediction_2 = self.predictor(self.online(first)), self.predictor(self.online(second))
            cosine = F.cosine_similarity(prediction_1, target_2) + F.cosine_similarity(prediction_2, target_1)
            loss = 4 - 2 * cosine.mean()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            for target, online in zip(self.target.parameters(), self.online.parameters(), strict=True):
                target.lerp_(online, 1 - TAU)


def main() -> None:
    arguments = _parse()
    same = ["objective.name=byol", "optim.name=sgd", "eval.probe_lr=0", "train.accumulate=1"]
    config = resolve(load_config(arguments.config, [*arguments.overrides, *same]))
    device = resolve_device(config.train.device)
    batch, views = _make_batch(config, device)
    timer = Timer(device, arguments.repeats, arguments.seconds)
    rates = timer.rates(_candidates(config, device, batch, views))
    plain = rates["plain"].per_second
    for name, rate in rates.items():
        print(
            f"{name:<24} {rate.per_second:>10,.1f} images/s ({rate.low:,.1f} - {rate.high:,.1f})  "
            f"{rate.milliseconds:>9.2f} ms a batch  {rate.per_second / plain:.2f} x plain"
        )
    if arguments.json:
        report = {
            "command": shlex.join(["python", *sys.argv]),
            "environment": describe_environment(device, world_size=1),
            "config": to_dict(config),
            "candidates": {
                name: {
                    "images_per_second": rate.per_second,
                    "low": rate.low,
                    "high": rate.high,
                    "repeats": rate.repeats,
                    "milliseconds": rate.milliseconds,
                    "times_plain": rate.per_second / plain,
                }
                for name, rate in rates.items()
            },
        }
        write_atomically(arguments.json, lambda temporary: temporary.write_text(json.dumps(report, indent=2) + "\n"))


def _make_batch(config: Config, device: torch.device) -> tuple[Batch, Tensor]:
    """A batch of the training images, and its views."""
    packed, seed = open_packed(config.data.dir), config.train.seed
    loader = build_loader(config.data, config.augment, packed, "train", train=True, seed=seed, device=device)
    try:
        batch = next(iter(loader))
    finally:
        loader.close()
    augment = Augment(config.augment, config.data.image_size)
    return batch, augment.views(batch.pixels, batch.size, batch.index, seed, 0)


def _candidates(config: Config, device: torch.device, batch: Batch, views: Tensor) -> dict[str, Callable[[], int]]:
    plain_step = PlainStep(config, device)
    halves = views.chunk(2)

    def plain() -> int:
        with _cudnn_tries():
            plain_step(*halves)
        return len(batch.index)

    def ours(*, ready: bool) -> TrainStep:
        augment = Augment(config.augment, config.data.image_size)
        step = build_step(config, open_packed(config.data.dir), augment, device)
        step.set_schedule(0, LEARNING_RATE, 0.0, TAU)
        if ready:
            step.views = lambda *_: views
        return step

    def on_batch(step: Callable[[Batch], None]) -> Callable[[], int]:
        def call() -> int:
            step(batch)
            return len(batch.index)

        return call

    candidates = {"plain": plain, "ours, eager": on_batch(ours(ready=True))}
    if device.type == "cuda" or config.train.compile:
        compiled = ours(ready=True)
        compile_step(compiled, batch)
        candidates["ours, compiled"] = on_batch(compiled)
    if device.type == "cuda":
        candidates["ours, captured"] = on_batch(prepare_step(ours(ready=True), batch))
        tuned = candidates["ours, captured, cuDNN tries"] = on_batch(prepare_step(ours(ready=True), batch))
        with _cudnn_tries():
            for _ in range(5):  # cuDNN tries its algorithms before the capture, which keeps its choices
                tuned()
    candidates["ours, with augmentation"] = on_batch(prepare_step(ours(ready=False), batch))
    return candidates


def _cudnn_tries() -> AbstractContextManager:
    """cuDNN tries all its algorithms instead of guessing the best."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="a YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.dir=c10")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="blocks of each; default: 5")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="a block lasts; default: 2")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    run_command(main)
