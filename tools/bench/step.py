"""Compare our BYOL step with a plain one (``PlainStep``): images per second on the same batch, in turn.

Both train the same network with the same heads, loss, optimizer (SGD with momentum) and precision. The plain step gets
ready-made views, and cuDNN may try all its algorithms for it. Ours is measured with ready-made views too, and also
with its own augmentation.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from pipelines.augment.views import Augment
from pipelines.batch import Batch
from pipelines.formats.packed import open_packed
from pipelines.loading.build import build_loader
from tools.bench.plain_step import LEARNING_RATE, TAU, PlainStep
from tools.bench.timing import Rate, Timer
from vssl.engine.build import build_step, prepare_step
from vssl.engine.compilation import compile_step
from vssl.engine.config import Config
from vssl.engine.step import TrainStep

__all__ = ["describe", "measure", "summarise"]


def measure(config: Config, device: torch.device, repeats: int, seconds: float) -> dict[str, Rate]:
    """The rate of each candidate, by name.

    Args:
        config: resolved, of BYOL with optim.name=sgd, eval.probe_lr=0 and train.accumulate=1.
        repeats, seconds: as ``Timer``.

    Raises:
        UserError: the backbone is not a torchvision model, or the data set cannot be opened.
    """
    batch, views = _make_batch(config, device)
    return Timer(device, repeats, seconds).rates(_candidates(config, device, batch, views))


def summarise(rates: dict[str, Rate]) -> str:
    """A table of the rates."""
    plain = rates["plain"].per_second
    return "\n".join(
        f"{name:<24} {rate.per_second:>10,.1f} images/s ({rate.low:,.1f} - {rate.high:,.1f})  "
        f"{rate.milliseconds:>9.2f} ms per batch  {rate.per_second / plain:.2f} x plain"
        for name, rate in rates.items()
    )


def describe(rates: dict[str, Rate]) -> dict[str, dict]:
    """Plain values for a report."""
    plain = rates["plain"].per_second
    return {
        name: {
            **rate.report(),
            "milliseconds": rate.milliseconds,
            "times_plain": rate.per_second / plain,
        }
        for name, rate in rates.items()
    }


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
        made = (lambda *_: views) if ready else None
        step = build_step(config, open_packed(config.data.dir), device, views=made)
        step.set_schedule(0, LEARNING_RATE, 0.0, TAU)
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
            for _ in range(5):  # cuDNN tries its algorithms before the capture, which records its choices
                tuned()
    candidates["ours, with augmentation"] = on_batch(prepare_step(ours(ready=False), batch))
    return candidates


def _cudnn_tries() -> AbstractContextManager:
    """cuDNN tries all its algorithms instead of guessing the best."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True)
