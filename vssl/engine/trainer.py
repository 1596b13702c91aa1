"""The training loop: build, resume, train, log, evaluate, save, export."""

import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.augment.groups import at_side
from pipelines.augment.views import Augment
from pipelines.batch import Loader
from pipelines.errors import UserError
from vssl.config import to_dict
from vssl.engine.async_checkpoint import Saver
from vssl.engine.batch_size_checks import explain_micro_batches
from vssl.engine.build import build_step, evaluation_loader, make_views, open_run, prepare_step, training_loader
from vssl.engine.checkpoint import export_backbone
from vssl.engine.collapse_alarms import Alarms
from vssl.engine.config import Config, resolve, without_weights
from vssl.engine.derived import derived_values
from vssl.engine.environment import describe_environment
from vssl.engine.hang_watch import HangWatch
from vssl.engine.nonfinite import diagnosis
from vssl.engine.progressive_resize import view_side
from vssl.engine.resume import Change, find_changes, identify, logged_knn
from vssl.engine.run_ahead import RunAhead
from vssl.engine.run_directory import RunDirectory
from vssl.engine.signals import Signals, Stopped
from vssl.engine.time_budget import TimeBudget
from vssl.evaluation.online import OnlineEvaluation
from vssl.loggers.group import LoggerGroup
from vssl.models.ema import scale_tau, tau_at
from vssl.models.weights import backbone_weights
from vssl.optim import Schedule
from vssl.runtime.processes import World

__all__ = ["Stopped", "Trainer"]


class Trainer:
    """A training run, from its config to the exported backbone.

    Args:
        config: as loaded; ``null`` values are resolved here.
        resume: None, ``auto`` or the path of a checkpoint or run directory; see ``RunDirectory``.
        world: the processes of this run; only the first one opens the directory, writes and logs.
        on_step: called with the trainer after every step, before it logs, saves or stops.

    Raises:
        UserError: something that the user can correct, such as a wrong config, damaged data or a used directory.
    """

    def __init__(
        self,
        config: Config,
        resume: str | None = None,
        world: World | None = None,
        on_step: Callable[["Trainer"], None] | None = None,
    ) -> None:
        self._budget = TimeBudget(config.train.minutes) if config.train.minutes else None  # until the run is planned
        self.on_step = on_step
        self.config = config = resolve(config)
        self.world = world = world or World()
        self.device, self.packed = open_run(config, world)
        self.directory = RunDirectory(config, resume) if world.is_main else None
        state = world.broadcast(None if self.directory is None else self.directory.load())
        self._identity = identify(config, self.packed, world.size)
        self._changes: list[Change] = []
        if state is not None:
            self._changes = find_changes(state.get("run"), config, self.packed, world.size)
        fresh = config if state is None else without_weights(config)
        self.train_step = build_step(fresh, self.packed, self.device, world)
        self._side = config.data.image_size
        self.loader = self._build_loader()
        self._set_length(config.train.epochs * len(self.loader))
        self.evaluation = OnlineEvaluation(
            config.eval,
            self.packed,
            functools.partial(evaluation_loader, config, self.packed, self.device, world),
            Augment(config.augment, config.data.image_size).evaluate,
            self.train_step.autocast,
            world,
        )
        self.step = 0
        self.knn_first: float | None = None
        self.knn_last: float | None = None
        self._watch = HangWatch(f"process {world.rank} of {world.size}")
        self._signals, self._stop = Signals(), 0  # the one that came to this process; the one that all act on
        self._saved_at, self._saved_step, self._evaluated_step = time.monotonic(), -1, -1
        self._alarms = Alarms(1 if self.evaluation.reason else self.packed.splits["val"].count)
        self._healthy: dict | None = None  # the last log line whose steps were all finite
        if state is not None:
            self._restore(state)
        elif resume == "auto":
            print(f"no checkpoint in {config.run.dir}: starting a new run", file=sys.stderr)
        self._logged_step = self.step

    def _set_length(self, steps: int) -> None:
        """Make this a run of so many steps, which its schedules follow."""
        config, self.total_steps = self.config, steps
        batch = config.data.batch_size
        self.schedule = Schedule.of(config.optim, batch_size=batch, steps=steps, steps_per_epoch=len(self.loader))
        self.probe_schedule = Schedule(config.eval.probe_lr * batch / 256, steps, 0)

    @property
    def epoch(self) -> float:
        """How many epochs are done."""
        return self.step / len(self.loader)

    def fit(self) -> None:
        """Train to the end, then export the backbone.

        Raises:
            Stopped: on a signal (``Signals``), after the step is finished and everything is saved.
            UserError: the loss is no longer finite; the last good checkpoint is kept.
        """
        with self._signals, self._watch, contextlib.ExitStack() as closing:
            closing.callback(lambda: self.loader.close())  # the current one: it may be replaced
            if self.directory is not None:
                environment = describe_environment(self.device, self.world.size)
                derived = derived_values(self.config, self.schedule, len(self.loader), self.world.size)
                self.directory.describe(self.config, environment | {"derived": derived}, self.step)
                names, run = self.config.train.loggers, self.directory.path
                self.loggers = LoggerGroup(names, run, to_dict(self.config), self.total_steps, self.step)
                closing.callback(self.loggers.close)
                self.saver = closing.enter_context(Saver(self.directory.checkpoints, self.device))
            if meaning := explain_micro_batches(self.config, self.train_step.method):
                print(meaning, file=sys.stderr)
            if self.step > 0:
                self._announce_resume()
            if self.step == 0 or self._evaluation_is_due():  # stopped between saving and evaluating
                self._evaluate()
            run_step, run_ahead = None, RunAhead(self.device)
            self._start_clock()
            self._saved_at = time.monotonic()
            while self.step < self.total_steps:
                if self._resize():
                    run_step = None
                self._watch.note_batch(self.step, len(self.loader))
                for batch in self.loader:
                    self._watch.note(f"waiting for the other processes before step {self.step + 1}")
                    # By now every process has its batch or failed to get it; all stop after the same step.
                    self._stop = self.world.agree(self._signals.received)
                    if run_step is None:
                        self._watch.note("compiling the step")
                        run_step = prepare_step(self.train_step, batch)
                        self._start_clock()
                    self._watch.note(f"in step {self.step + 1}")
                    self._schedule_step()
                    run_step(batch)
                    run_ahead.limit()
                    self.step += 1
                    self._after_step()
                    if self.step == self.total_steps and self.step % len(self.loader):
                        break  # a run of train.minutes can end within an epoch
                    self._watch.note_batch(self.step, len(self.loader))
                self._after_epoch()
        if self.directory is not None:
            weights = backbone_weights(self.train_step.method.state_dict())
            export_backbone(weights, self.directory.path / "backbone.safetensors")

    def _announce_resume(self) -> None:
        """Write and print from which step the run continues, and what is not as before."""
        changed = {change.key: [change.old, change.new] for change in self._changes}
        self._write(resumed_from_step=self.step, **({"changed": changed} if changed else {}))
        for change in self._changes:
            print(f"resumed at step {self.step}: {change}", file=sys.stderr)
        if changed.keys() & {"train.epochs", "optim.lr"} and self.step < self.total_steps:
            tau = self._tau(self.step)
            print(
                f"from step {self.step} of {self.total_steps} on the schedules are those of a run of "
                f"{self.total_steps / len(self.loader):.4g} epochs: learning rate "
                f"{self.schedule.learning_rate(self.step):.3g}"
                + ("" if tau is None else f", teacher's momentum {tau:.4f}"),
                file=sys.stderr,
            )

    def _build_loader(self) -> Loader:
        """The loader of the training images, for views of the current size."""
        return training_loader(self.config, self.packed, self.device, self.world, self._side)

    def _resize(self) -> bool:
        """Set the size of the views for the current epoch; returns whether it changed."""
        train, full = self.config.train, self.config.data.image_size
        side = view_side(self.step // len(self.loader), train.epochs, train.first_size, full)
        if side == self._side:
            return False
        self._side, state = side, self.loader.state_dict()
        self.loader.close()
        self.loader = self._build_loader()
        self.loader.load_state_dict(state)
        augment = at_side(self.config.augment, full, side)
        self.train_step.set_views(make_views(Augment(augment, side), train.seed))
        if self.world.is_main:
            print(f"views of {side} pixels from epoch {self.step // len(self.loader)} on", file=sys.stderr)
        return True

    def _write(self, **values: Any) -> None:
        if self.world.is_main:
            self.loggers.log(self.step, self.epoch, values)

    def _tau(self, step: int) -> float | None:
        """The teacher's momentum; None for a method without a teacher."""
        if (method := self.train_step.method).teacher is None:
            return None
        start = scale_tau(method.options.tau, self.config.data.batch_size)
        return tau_at(step, start=start, steps=self.total_steps)

    def _schedule_step(self) -> None:
        tau = self._tau(self.step)
        self.train_step.set_schedule(
            epoch=self.step // len(self.loader),
            step=self.step,
            lr=self.schedule.learning_rate(self.step),
            probe_lr=self.probe_schedule.learning_rate(self.step),
            tau=1.0 if tau is None else tau,
            weight_decay=self.schedule.decay(self.step),
        )

    def _after_step(self) -> None:
        if self.on_step is not None:
            self.on_step(self)
        if self.world.is_main:
            self.loggers.advance(self.step)
        if self._budget is not None:
            self._plan(self._budget)
        if self.step % self.config.train.log_every == 0 or self.step == self.total_steps:
            self._log()
        settings = self.config.checkpoint
        due = settings.every_steps and self.step % settings.every_steps == 0
        if due or (settings.every_minutes and time.monotonic() - self._saved_at > 60 * settings.every_minutes):
            self._save()
        self._answer_signal()

    def _answer_signal(self) -> None:
        """Save, unless this step is saved already, and raise ``Stopped`` if a signal came."""
        if not self._stop:
            return
        if self._saved_step != self.step:
            self._save()
        if self.directory is not None:
            self.saver.finish()
        raise Stopped(self._stop)

    def _ask_for_signal(self) -> None:
        """As ``_answer_signal``, between the batches of an evaluation; all processes agree first."""
        self._watch.note(f"waiting for the other processes in the evaluation after step {self.step}")
        self._stop = self.world.agree(self._signals.received)
        self._answer_signal()
        self._watch.note(f"waiting for a batch of the evaluation after step {self.step}")

    def _plan(self, budget: TimeBudget) -> None:
        """Once the pace is known, plan the number of steps for ``train.minutes``; all processes take the first's."""
        known, per_epoch, train = budget.note_step(self.step), len(self.loader), self.config.train
        interval = 0 if self.evaluation.reason else self.config.eval.every * per_epoch
        plan = self.world.broadcast(budget.plan(self.step, interval, train.epochs * per_epoch) if known else None)
        if plan is None:
            return
        self._budget = None
        self._set_length(plan)
        self._write(planned_steps=plan, seconds_per_step=budget.step)
        if self.world.is_main:
            self.loggers.set_length(plan)
        self._tell([budget.describe(plan, per_epoch, train.epochs)])

    def _after_epoch(self) -> None:
        epoch, ragged = divmod(self.step, len(self.loader))
        if not ragged:
            self.loader.set_epoch(epoch)
        last = self.step == self.total_steps
        if not self.config.checkpoint.every_steps or last:
            self._save()  # before evaluating, which may take long or fail
        if self._evaluation_is_due():
            self._evaluate()
            if last:
                self._save()  # with the result
        self._start_clock()

    def _evaluation_is_due(self) -> bool:
        """Whether this step ends an epoch after which to evaluate, and that is not done."""
        epoch, ragged = divmod(self.step, len(self.loader))
        every, last = self.config.eval.every, self.step == self.total_steps
        return self._evaluated_step != self.step and every > 0 and (last or (not ragged and epoch % every == 0))

    def _start_clock(self) -> None:
        self._clock, self._clock_step = time.perf_counter(), self.step

    def _log(self) -> None:
        """Read the device's metrics (the only host sync of the loop) and write them."""
        bad, first = self.train_step.watch.read()
        scale = self.train_step.loss_scale
        values = self.world.mean(self.train_step.metrics.read())
        if scale.enabled:
            values |= {"loss_scale": scale.scale.item(), "overflows": bad}
        elapsed = time.perf_counter() - self._clock
        images = (self.step - self._clock_step) * self.config.data.batch_size
        tau = self._tau(self.step - 1)
        self._write(
            **values,
            lr=self.schedule.learning_rate(self.step - 1),
            **({} if tau is None else {"tau": tau}),
            images_per_second=round(images / elapsed, 1),
        )
        if bad and (scale.exhausted or not scale.enabled):
            self._diagnose(bad, self._logged_step + first)
        if not bad:
            self._healthy = {"step": self.step, **values}
        self._logged_step = self.step
        self._tell(self._alarms.of_step(values))
        self._start_clock()

    def _diagnose(self, bad: int, first: int) -> None:
        """Write ``diagnosis.json`` on ``bad`` steps that were not finite, from step ``first`` on; raise UserError."""
        index = self.world.gather(self.train_step.watch.index).tolist()
        figures = {
            "first_bad_step": first,
            "bad_steps": bad,
            "logged_at_step": self.step,
            "images": [image for image in index if image >= 0],  # positions in the packed training split
            "loss_scale": self.train_step.loss_scale.scale.item(),
            "last_healthy": self._healthy,
        }
        raise diagnosis(Path(self.config.run.dir) / "diagnosis.json", figures, write=self.world.is_main)

    def _evaluate(self) -> None:
        every = self.config.eval.every
        if not every or self.evaluation.reason is not None:
            if every and self.step == 0:
                print(f"no kNN during training: {self.evaluation.reason}", file=sys.stderr)
            return
        started = time.monotonic()
        measured = self.evaluation.measure(
            self.train_step.method.student.backbone, self.train_step.probe, self._ask_for_signal
        )
        self._evaluated_step = self.step
        if self._budget is not None:
            self._budget.note_evaluation(time.monotonic() - started)
        self.knn_last = measured["knn_top1"]
        if self.step == 0:
            self.knn_first = self.knn_last
        self._write(**measured)
        if self.knn_first is not None:
            self._tell(self._alarms.of_knn(self.knn_first, measured["knn_top1"]))

    def _tell(self, alarms: list[str]) -> None:
        for line in alarms if self.world.is_main else ():
            print(f"step {self.step}: {line}", file=sys.stderr)
            self.loggers.text(self.step, line)

    def _save(self) -> None:
        if self.directory is None:  # only the main process has one; the state is the same on all
            return
        state = self.train_step.state_dict() | {
            "step": self.step,
            "run": self._identity,
            "loader": self.loader.state_dict(),
            "knn": [self.knn_first, self.knn_last],
            "evaluated_step": self._evaluated_step,
            "planned_steps": self.total_steps if self.config.train.minutes and self._budget is None else None,
        }
        self.saver.save(self.step, state)
        self._saved_at, self._saved_step = time.monotonic(), self.step

    def _restore(self, state: dict) -> None:
        try:
            self.train_step.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"the checkpoint does not fit this config: {error}") from error
        self.loader.load_state_dict(state["loader"])
        self.step = state["step"]
        plan, minutes_changed = state.get("planned_steps"), any(c.key == "train.minutes" for c in self._changes)
        if plan and self._budget is not None and not minutes_changed:
            self._budget = None
            self._set_length(min(plan, self.total_steps))
        if self.step > self.total_steps:
            raise UserError(
                f"train.epochs={self.config.train.epochs} ends at step {self.total_steps}, but the checkpoint is of "
                f"step {self.step}: give at least {math.ceil(self.epoch)} epochs"
            )
        if "run" not in state:
            print(
                f"an earlier version wrote the checkpoint of step {self.step}, without its config and data: this run's "
                "are not compared with them",
                file=sys.stderr,
            )
        self.knn_first, self.knn_last = state["knn"]
        self._evaluated_step = self._find_evaluation(state.get("evaluated_step", self.step))

    def _find_evaluation(self, known: int) -> int:
        """The step of the last evaluation: ``known`` from the checkpoint, or this step's, whose result the run has in
        ``metrics.jsonl``: a checkpoint is written before its evaluation."""
        logged = None if self.directory is None or known == self.step else logged_knn(self.directory.path, self.step)
        measured = self.world.broadcast(logged)
        if measured is None:
            return known
        self.knn_last = measured
        return self.step
