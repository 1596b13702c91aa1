"""Measure the stages of a run, each alone and then all together."""

import dataclasses
import functools
import itertools
import resource
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from pipelines.augment.views import Augment
from pipelines.batch import Batch
from pipelines.formats.ffcv.format import read_table
from pipelines.loading.threads import worker_count
from vssl.config import to_dict
from vssl.engine.build import build_step, open_run, prepare_step, training_loader
from vssl.engine.config import Config, resolve
from vssl.profile.bottleneck import advise, name_bottleneck
from vssl.profile.decoding import JpegDecoder
from vssl.profile.exchange import measure_exchange
from vssl.profile.floors import copy_bandwidth, count_flops, matrix_rate, memory_bandwidth
from vssl.profile.timing import Rate, Timer, replayable
from vssl.runtime.precision import resolve_amp
from vssl.runtime.processes import World

__all__ = ["StageProfiler"]

_CACHED = 4  # batches that the step and the augmentation get repeatedly
_TRACED = 5  # steps in a trace


class StageProfiler:
    """Measures a run of ``config`` on this machine, without writing a run directory.

    Args:
        config: as loaded; ``null`` values are resolved here.
        repeats: blocks per stage; the median is reported.
        seconds: length of a block, which has at least one batch.
        world: the processes of the run. All call every method; rates are those of all together.

    Attributes:
        loader, step: those of the measured run, built as in training.

    Raises:
        UserError: as ``Trainer``.
    """

    def __init__(self, config: Config, *, repeats: int = 5, seconds: float = 1.0, world: World | None = None) -> None:
        self.config = config = resolve(config)
        self.world = world = world or World()
        self.device, self.packed = open_run(config, world)
        self.step = build_step(config, self.packed, self.device, world)
        self.loader = training_loader(config, self.packed, self.device, world)
        self.timer = Timer(self.device, repeats, seconds, world)
        self._run: Any = None  # the step, compiled and captured, once it is prepared
        self._steps = 0

    def measure(self) -> dict:
        """Measure everything; see docs/performance.md for the meaning of each figure."""
        cached = self._cache_batches()
        flops = count_flops(self.step, cached[0])
        measured = {"decode": self._decode(), "load": self._load(), "copy": self._copy(cached[0])}
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        started = time.perf_counter()
        self._run = prepare_step(self.step, cached[0])
        preparation = time.perf_counter() - started
        measured["augment"] = self._alone(lambda: self._views(cached[0]), cached[0])
        endless = itertools.cycle(cached)
        measured["step"] = self.timer.rate(lambda: self._train(next(endless)))
        measured["end_to_end"] = self.end_to_end()
        stages = {name: rate for name, rate in measured.items() if rate is not None}
        memory = self.memory()

        hardware, floors = self._floors(cached[0], flops, stages)
        split = self._split(cached[0])
        bottleneck = name_bottleneck({name: rate.milliseconds for name, rate in stages.items()} | split)
        costs = self._augment_costs(cached[0]) if bottleneck == "augment" else {}
        ceilings = floors | {"load": floors.get("decode"), "step": floors["arithmetic"]}
        slowest = ceilings["end_to_end"] = min(floors.values())
        return {
            "config": to_dict(self.config),
            "stages": {name: _as_stage(rate, ceilings.get(name)) for name, rate in stages.items()},
            "bottleneck": bottleneck,
            "advice": advise(bottleneck, self.config, self.packed.format, self.device.type, self._workers, costs),
            "floor_fraction": stages["end_to_end"].per_second / slowest,
            "ceiling_fraction": stages["end_to_end"].per_second / stages["step"].per_second,
            "floors": floors,
            "hardware": hardware,
            "flops_per_image": flops,
            "model_flop_utilisation": stages["step"].per_second / floors["arithmetic"],
            "step_milliseconds": split,
            "augment_share": stages["step"].per_second / stages["augment"].per_second,
            "update_share": split["optimizer_and_ema"] / stages["step"].milliseconds,
            "compiled": self.step.compiled,
            "preparation_seconds": preparation,
            "memory": memory,
            **({"processes": self._exchange(cached[0])} if self.world.distributed else {}),
        }

    def end_to_end(self) -> Rate:
        """Training as a whole: the step with batches from the loader. The first call prepares the step."""
        batches = self._batches()
        self._run = self._run or prepare_step(self.step, next(batches))
        try:
            return self.timer.rate(lambda: self._train(next(batches)))
        finally:
            batches.close()

    def memory(self) -> dict[str, int]:
        """Peak memory in bytes: of this process, and of the GPU during the step."""
        peak = {"host_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
        if self.device.type == "cuda":
            peak["gpu_bytes"] = torch.cuda.max_memory_reserved(self.device)
        return peak

    def trace(self, path: Path) -> None:
        """Write a trace of a few steps, end to end, for Perfetto or chrome://tracing."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        batches = self._batches()
        self._run = self._run or prepare_step(self.step, next(batches))
        for _ in range(_TRACED):
            self._train(next(batches))
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(_TRACED):
                self._train(next(batches))
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        batches.close()
        profiler.export_chrome_trace(str(path))

    def close(self) -> None:
        """End the loader's threads."""
        self.loader.close()

    @property
    def _workers(self) -> int:
        return worker_count(self.config.data)

    def _batches(self) -> Generator[Batch]:
        """Batches of the loader, epoch after epoch."""
        for epoch in itertools.count():
            self.loader.set_epoch(epoch)
            yield from self.loader

    def _cache_batches(self) -> list[Batch]:
        batches = self._batches()
        cached = list(itertools.islice(batches, min(_CACHED, len(self.loader))))
        batches.close()
        return cached

    def _train(self, batch: Batch) -> int:
        """A step with everything that the training loop does around it; returns the number of images."""
        if self._steps % self.config.train.log_every == 0 and self._steps:
            self.step.metrics.read()
        # Low rates, as at the start of warm-up, keep untrained weights finite during the measurement.
        self.step.set_schedule(0, 0.01 * self.config.optim.lr, 0.01 * self.config.eval.probe_lr, tau=0.99)
        self._run(batch)
        self._steps += 1
        return len(batch.index)

    def _views(self, batch: Batch) -> torch.Tensor:
        return self.step.views(batch.pixels, batch.size, batch.index)

    def _decode(self) -> Rate | None:
        """libjpeg-turbo alone, with the loader's samples, scales and number of threads."""
        path = self.packed.dir / "train.beton"
        if self.packed.format != "ffcv" or not read_table(path).jpeg.any():
            return None
        decoder = JpegDecoder(path, self._workers)
        self.loader.set_epoch(0)
        indices = list(itertools.islice(self.loader.sampler.remaining(), 32))
        samples = [(index, self.loader.denominators(index)) for index in indices]
        batches = decoder.batches(itertools.cycle(samples), self.config.data.prefetch)
        try:
            return self.timer.rate(lambda: next(batches))
        finally:
            batches.close()
            decoder.close()

    def _load(self) -> Rate:
        batches = self._batches()
        try:
            return self.timer.rate(lambda: len(next(batches).index))
        finally:
            batches.close()

    def _copy(self, batch: Batch) -> Rate | None:
        """Copy a batch from pinned memory to the device; None if its pixels are already there or are decoded there."""
        if self.device.type != "cuda" or not self.loader.copies_pixels:
            return None
        pinned = [part.cpu().pin_memory() for part in batch]

        def copy() -> int:
            for part in pinned:
                part.to(self.device, non_blocking=True)
            return len(batch.index)

        return self.timer.rate(copy)

    def _floors(self, batch: Batch, flops: float, stages: dict[str, Rate]) -> tuple[dict, dict[str, float]]:
        """The measured limits of the hardware, and the images per second that each of them allows."""
        amp = resolve_amp(self.config.train.amp, self.device) or torch.float32
        matrix, memory = matrix_rate(self.timer, amp), memory_bandwidth(self.timer)
        images = len(batch.index)
        image_bytes = batch.pixels.nbytes / images
        view_bytes = 2 * 3 * self.config.data.image_size**2 * 4
        hardware = {"matrix_flops": matrix.per_second, "matrix_dtype": str(amp), "memory_bytes": memory.per_second}
        floors = {
            "arithmetic": matrix.per_second / flops,
            "augment": memory.per_second / (image_bytes + view_bytes),  # each pixel read once, each view written once
        }
        if "decode" in stages:
            floors["decode"] = stages["decode"].per_second
        if "copy" in stages:
            hardware["copy_bytes"] = copy_bandwidth(self.timer).per_second
            floors["copy"] = hardware["copy_bytes"] / image_bytes
        return hardware, floors

    def _split(self, batch: Batch) -> dict[str, float]:
        """Milliseconds per batch of the parts of the step after the augmentation, each measured alone.

        ``network`` is ``forward`` (the method: networks and loss) and ``backward`` together.
        """
        step = self.step
        with self._ready_views(batch):
            forward = self._alone(lambda: step.forward(batch), batch).milliseconds
            network = self._alone(lambda: step.backward(batch), batch).milliseconds
            loss = step.backward(batch)["loss"]
        update = self._alone(lambda: step.update(loss), batch).milliseconds
        return {
            "forward": forward,
            "backward": network - forward,
            "network": network,
            "optimizer_and_ema": update,
        }

    def _exchange(self, batch: Batch) -> dict:
        with self._ready_views(batch):
            backward = functools.partial(self.step.backward, batch)
            return measure_exchange(self.step, backward, lambda work: self._alone(work, batch), self.timer)

    def _ready_views(self, batch: Batch) -> AbstractContextManager:
        """Context in which the step takes the views of ``batch`` instead of making them."""
        step = self.step
        return step.ready_views(
            [step.views(pixels, size, index) for pixels, size, _, index in step.micro_batches(batch)]
        )

    def _alone(self, work: Callable[[], object], batch: Batch) -> Rate:
        """Time ``work``, which processes ``batch``; on a GPU captured, as in the step."""
        run, images = replayable(work, self.device, self.world.distributed), len(batch.index)

        def call() -> int:
            run()
            return images

        return self.timer.rate(call)

    def _augment_costs(self, batch: Batch) -> dict[str, float]:
        """For each config key, the share of the augmentation's time that its operation takes."""
        seed, image_size = self.config.train.seed, self.config.data.image_size
        off = {"jitter": 0.0, "gray": 0.0, "blur": (0.0, 0.0), "solarize": (0.0, 0.0)}

        def milliseconds(**changes: Any) -> float:
            augment = Augment(dataclasses.replace(self.config.augment, **changes), image_size)
            arguments = (batch.pixels, batch.size, batch.index, seed, 0)
            return self._alone(lambda: augment.views(*arguments), batch).milliseconds

        whole = milliseconds()
        costs = {f"augment.{key}": 1 - milliseconds(**{key: value}) / whole for key, value in off.items()}
        # With everything off there remain normalisation and the crop, whose cost depends on the canvas.
        return costs | {"data.canvas": milliseconds(**off) / whole}


def _as_stage(rate: Rate, ceiling: float | None) -> dict:
    stage = {**rate.report(), "milliseconds": rate.milliseconds, "cpu_cores": rate.cpu_cores}
    return stage | ({"floor_fraction": rate.per_second / ceiling} if ceiling else {})
