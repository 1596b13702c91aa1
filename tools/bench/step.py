"""Compare our BYOL step with a plain one (``PlainStep``): images per second on the same batch, in turn.

Both train the same network with the same heads, loss, optimizer (SGD with momentum) and precision. The plain step gets
ready-made views. Ours is measured with ready-made views too, and also with its own augmentation. On a GPU both are
measured with cuDNN guessing its algorithms, as in a training, and with cuDNN trying all of them.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from pipelines.augment.views import Augment
from pipelines.batch import Batch, Views
from pipelines.errors import UserError
from pipelines.formats.packed import open_packed
from tools.bench.plain_step import LEARNING_RATE, TAU, PlainStep
from vssl.engine.build import build_step, prepare_step, training_loader
from vssl.engine.compilation import compile_step
from vssl.engine.config import Resolved
from vssl.engine.step import TrainStep
from vssl.methods.pairs import TWO_VIEWS, ViewCounts
from vssl.profile.timing import Rate, Timer
from vssl.runtime.processes import World

__all__ = ["describe", "measure", "summarise"]


def measure(config: Resolved, device: torch.device, repeats: int, seconds: float) -> dict[str, Rate]:
    """The rate of each candidate, by name.

    Args:
        config: resolved, of BYOL with optim.name=sgd, eval.probe_lr=0 and train.accumulate=1.
        repeats, seconds: as ``Timer``.

    Raises:
        UserError: the backbone is not a torchvision model, the data set cannot be opened, or the step not compiled.
    """
    if device.type != "cuda":
        return _measure(config, device, repeats, seconds, cudnn_tries=False)
    rates: dict[str, Rate] = {}
    for cudnn_tries in (False, True):  # a process each, because cuDNN keeps its choices until the process ends
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            rates |= process.submit(_measure, config, device, repeats, seconds, cudnn_tries).result()
    return rates


def _measure(
    config: Resolved, device: torch.device, repeats: int, seconds: float, cudnn_tries: bool
) -> dict[str, Rate]:
    torch.backends.cudnn.benchmark = cudnn_tries
    rates = Timer(device, repeats, seconds).rates(_candidates(config, device, *_make_batch(config, device)))
    return {f"{name}, cuDNN tries": rate for name, rate in rates.items()} if cudnn_tries else rates


def _plain_rate(rates: dict[str, Rate]) -> float:
    """The plain step's rate with its faster setting of cuDNN."""
    return max(rate.per_second for name, rate in rates.items() if name.startswith("plain"))


def summarise(rates: dict[str, Rate]) -> str:
    """A table of the rates."""
    plain = _plain_rate(rates)
    return "\n".join(
        f"{name:<36} {rate.per_second:>10,.1f} images/s ({rate.low:,.1f} - {rate.high:,.1f})  "
        f"{rate.milliseconds:>9.2f} ms per batch  {rate.per_second / plain:.2f} x plain"
        for name, rate in rates.items()
    )


def describe(rates: dict[str, Rate]) -> dict[str, dict]:
    """Plain values for a report."""
    plain = _plain_rate(rates)
    return {
        name: {
            **rate.report(),
            "milliseconds": rate.milliseconds,
            "times_plain": rate.per_second / plain,
        }
        for name, rate in rates.items()
    }


def _make_batch(config: Resolved, device: torch.device) -> tuple[Batch, Views]:
    """A batch of the training images, and its two full views, the only ones that the plain step takes."""
    loader = training_loader(config, open_packed(config.data.dir), device, World())
    try:
        batch = next(iter(loader))
    finally:
        loader.close()
    if ViewCounts.of(config.augment) != TWO_VIEWS:
        raise UserError("the plain step has two full views: set augment.views=2 augment.local_views=0")
    augment = Augment(config.augment, config.data.image_size)
    return batch, augment.views(batch.pixels, batch.size, batch.index, config.train.seed, 0)


def _candidates(config: Resolved, device: torch.device, batch: Batch, views: Views) -> dict[str, Callable[[], int]]:
    plain_step = PlainStep(config, device)
    first, second = views.full.split(len(batch.index))

    def plain() -> int:
        plain_step(first, second)
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
        if not compile_step(compiled, batch):
            raise UserError("torch.compile failed, as reported above: the step would run eager")
        candidates["ours, compiled"] = on_batch(compiled)
    if device.type == "cuda":
        candidates["ours, captured"] = on_batch(prepare_step(ours(ready=True), batch))
    candidates["ours, with augmentation"] = on_batch(prepare_step(ours(ready=False), batch))
    return candidates
