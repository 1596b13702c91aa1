"""The training loop: build, resume, step, log, evaluate, save, export."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from pipelines.augment import Augment
from pipelines.build import build_loader
from pipelines.convert import DIGITS_DIR, pack_digits_if_absent
from pipelines.errors import UserError
from pipelines.packed import open_packed
from pipelines.types import Batch
from vssl.checkpoint import backbone_weights, export_backbone
from vssl.config import Config
from vssl.engine.capture import CapturedStep
from vssl.engine.compilation import compile_step
from vssl.engine.environment import describe_environment
from vssl.engine.precision import resolve_amp, resolve_device
from vssl.engine.run_directory import RunDirectory
from vssl.engine.step import TrainStep
from vssl.evaluation import OnlineEvaluation, OnlineProbe
from vssl.metrics import MetricsWriter
from vssl.models import build_student, load_backbone_weights
from vssl.objectives import build_objective
from vssl.optim import Schedule
from vssl.recipes import resolve

__all__ = ["Stopped", "Trainer"]

COLLAPSED = 0.05  # feature_std below this: untrained encoders have about 0.4, healthy ones 0.4 to 1


class Stopped(Exception):
    """A signal asked the run to stop; everything is saved. ``code``: the process's exit code, 128 + signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.code = 128 + number


class Trainer:
    """A run, from its config to its exported backbone.

    Args:
        config: as loaded; ``null`` values are resolved here.
        resume: None, ``auto`` or a checkpoint's path, see ``RunDirectory``.

    Raises:
        UserError: whatever the user can put right.
    """

    def __init__(self, config: Config, resume: str | None = None) -> None:
        self.config = config = resolve(config)
        self.device = resolve_device(config.train.device)
        if Path(config.data.dir) == DIGITS_DIR:
            pack_digits_if_absent(DIGITS_DIR)
        self.packed = open_packed(config.data.dir)
        self.directory = RunDirectory(config, resume)
        self.augment = Augment(config.augment, config.data.image_size)
        self.train_step = self._build_step()
        self.loader = build_loader(
            config.data,
            config.augment,
            self.packed,
            "train",
            train=True,
            seed=config.train.seed,
            device=self.device,
        )
        self.total_steps = config.train.epochs * len(self.loader)
        scale = config.data.batch_size / 256
        warmup = round(min(config.optim.warmup_epochs * len(self.loader), 0.1 * self.total_steps))
        self.schedule = Schedule(config.optim.lr * scale, config.optim.tau, self.total_steps, warmup)
        self.probe_schedule = Schedule(config.eval.probe_lr * scale, 0.0, self.total_steps, 0)
        self.evaluation = OnlineEvaluation(config, self.packed, self.augment, self.device, self.train_step.autocast)
        self.step = 0
        self.knn_first: float | None = None
        self.knn_last: float | None = None
        self._signal: int | None = None
        self._alarmed = False
        if self.directory.state is not None:
            self._restore(self.directory.state)
        elif resume == "auto":
            print(f"no checkpoint in {self.directory.path}: starting afresh", file=sys.stderr)

    def _build_step(self) -> TrainStep:
        config = self.config
        torch.manual_seed(config.train.seed)
        student = build_student(config.model, config.data.image_size, method=config.objective.name)
        if config.model.weights:
            load_backbone_weights(student.encoder.backbone, config.model.weights)
        student = student.to(self.device, memory_format=torch.channels_last).train()
        probe = None
        if self.packed.splits["train"].labelled and config.eval.probe_lr > 0:
            probe = OnlineProbe(student.encoder.width, len(self.packed.classes)).to(self.device)
        objective = build_objective(config.objective, config.model.logvar_bound)
        amp = resolve_amp(config.train.amp, self.device)
        return TrainStep(config, self.augment, student, objective, probe, self.device, amp)

    @property
    def epoch(self) -> float:
        """Epochs behind us."""
        return self.step / len(self.loader)

    def fit(self) -> None:
        """Train to the end, then export the backbone.

        Raises:
            Stopped: SIGINT or SIGTERM came; the step was finished and everything saved.
            UserError: the loss is no longer finite; the last good checkpoint is kept.
        """
        config = self.config
        self.directory.describe(config, describe_environment(self.device, world_size=1))
        self.metrics = MetricsWriter(self.directory.path, self.total_steps, self.step)
        with self._signals(), contextlib.ExitStack() as closing:
            closing.callback(self.metrics.close)
            closing.callback(self.loader.close)
            if self.step > 0:
                self.metrics.write(self.step, self.epoch, resumed_from_step=self.step)
            else:
                self._evaluate()
            run_step = None
            self._start_clock()
            while self.step < self.total_steps:
                for batch in self.loader:
                    run_step = run_step or self._prepare_step(batch)
                    self._schedule_step()
                    run_step(batch)
                    self.step += 1
                    self._after_step()
                self._after_epoch()
        weights = backbone_weights(self.train_step.student)
        export_backbone(weights, self.directory.path / "backbone.safetensors")

    def _prepare_step(self, batch: Batch) -> Callable[[Batch], None]:
        """The step as this device runs it best, for batches like ``batch``."""
        wanted = self.config.train.compile
        if wanted or (wanted is None and self.device.type == "cuda"):
            compile_step(self.train_step, batch)
            self._start_clock()
        return CapturedStep(self.train_step) if self.device.type == "cuda" else self.train_step

    def _schedule_step(self) -> None:
        self.train_step.set_schedule(
            epoch=self.step // len(self.loader),
            lr=self.schedule.learning_rate(self.step),
            probe_lr=self.probe_schedule.learning_rate(self.step),
            momentum=self.schedule.momentum(self.step),
        )

    def _after_step(self) -> None:
        self.metrics.advance(self.step)
        if self.step % self.config.train.log_every == 0 or self.step == self.total_steps:
            self._log()
        every = self.config.checkpoint.every_steps
        if every and self.step % every == 0:
            self._save()
        if self._signal is not None:
            self._save()
            raise Stopped(self._signal)

    def _after_epoch(self) -> None:
        epoch = round(self.epoch)
        self.loader.set_epoch(epoch)
        every = self.config.eval.every
        if every and (epoch % every == 0 or self.step == self.total_steps):
            self._evaluate()
        if not self.config.checkpoint.every_steps or self.step == self.total_steps:
            self._save()
        self._start_clock()

    def _start_clock(self) -> None:
        self._clock, self._clock_step = time.perf_counter(), self.step

    def _log(self) -> None:
        """Read the device's metrics (the only host sync of the loop) and write them."""
        bad = int(self.train_step.bad_steps)
        values = self.train_step.metrics.read()
        elapsed = time.perf_counter() - self._clock
        images = (self.step - self._clock_step) * self.config.data.batch_size
        self.metrics.write(
            self.step,
            self.epoch,
            **values,
            lr=self.schedule.learning_rate(self.step - 1),
            tau=self.schedule.momentum(self.step - 1),
            images_per_second=round(images / elapsed, 1),
        )
        if bad and not self.train_step.loss_scale.enabled:
            raise UserError(
                f"the loss or a gradient was not finite in {bad} steps before step {self.step}; they "
                "changed nothing and the last checkpoint is kept: lower optim.lr or set train.clip_grad"
            )
        if values["feature_std"] < COLLAPSED and not self._alarmed:
            self._alarmed = True
            print(
                f"collapse: at step {self.step} feature_std is {values['feature_std']:.3f}; to the encoder all images "
                "look nearly alike",
                file=sys.stderr,
            )
        self._start_clock()

    def _evaluate(self) -> None:
        if not self.evaluation.possible or not self.config.eval.every:
            return
        measured = self.evaluation.measure(self.train_step.student.encoder.backbone, self.train_step.probe)
        self.knn_last = measured["knn_top1"]
        if self.step == 0:
            self.knn_first = self.knn_last
        self.metrics.write(self.step, self.epoch, **measured)

    def _save(self) -> None:
        state = self.train_step.state_dict() | {
            "step": self.step,
            "loader": self.loader.state_dict(),
            "knn": [self.knn_first, self.knn_last],
        }
        self.directory.checkpoints.save(self.step, state)

    def _restore(self, state: dict) -> None:
        try:
            self.train_step.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"the checkpoint does not fit this config: {error}") from error
        self.loader.load_state_dict(state["loader"])
        self.step = state["step"]
        self.knn_first, self.knn_last = state["knn"]

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM finish the step; a second one ends the process as usual."""

        def note(number: int, _frame: object) -> None:
            self._signal = number
            signal.signal(number, before[number])

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
