"""Compare methods with the same config, budget and seeds: accuracies, diagnostics, images per second, memory.

An arm is a name and the overrides by which it differs from the others. Its runs are in WORK/NAME/seedN. An
interrupted run continues; a finished one is not trained or evaluated again.
"""

import argparse
import dataclasses
import json
import math
import multiprocessing
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError
from pipelines.files import write_json
from pipelines.formats.packed import open_packed
from tools.bench.charts import draw_methods
from vssl.charts import save_chart
from vssl.commands.results import check_outputs, report_head
from vssl.config import to_dict
from vssl.engine.config import Config, load_config, resolve
from vssl.evaluation.offline import OfflineEvaluation
from vssl.evaluation.protocols import build_protocol
from vssl.inference import load
from vssl.methods import COMPARED
from vssl.profile.stages import StageProfiler
from vssl.runtime.device import resolve_device

__all__ = ["compare_methods"]

# The accuracies of a run, and the diagnostics that show whether it is healthy.
ACCURACIES = {"knn_top1": "kNN", "online_top1": "online", "linear_top1": "linear"}
HEALTH = {"feature_std": "spread", "logvar_student": "log-var.", "on_bound": "on bound"}


@dataclass(frozen=True)
class Arm:
    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """The runs of an arm, one dict of figures per seed."""

    arm: Arm
    runs: list[dict]

    def mean(self, key: str) -> float | None:
        """The mean of a figure over the seeds; None if no run has it."""
        values = [run[key] for run in self.runs if key in run]
        return statistics.fmean(values) if values else None

    def standard_error(self, key: str) -> float | None:
        """The standard error of the mean over the seeds; None for fewer than two."""
        values = [run[key] for run in self.runs if key in run]
        return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


@dataclass(frozen=True)
class Pace:
    """Source images per second of training (the median of blocks, in turn with the other arms), and peak memory."""

    images_per_second: float
    low: float
    high: float
    repeats: int
    memory: dict[str, int]  # peaks in bytes, measured in a separate process


def compare_methods(arguments: argparse.Namespace) -> None:
    """Run ``tools/compare.py methods``.

    Raises:
        UserError: a wrong key or arm, a folder that holds another run, a training that failed, or a
            file that cannot be written.
    """
    check_outputs(arguments.json, arguments.plot, allow_dirty=arguments.allow_dirty)
    arms = [parse_arm(text) for text in arguments.arm or (f"{name} method.name={name}" for name in COMPARED)]
    if len({arm.name for arm in arms}) < len(arms):
        raise UserError("every --arm needs a name of its own")
    # Read all configs before training: a wrong key should not cost hours.
    configs = {arm.name: resolve(load_config(arguments.config, [*arguments.overrides, *arm.overrides])) for arm in arms}
    head = report_head(resolve_device(configs[arms[0].name].train.device))
    measured = [run_arm(arm, arguments.config, arguments.overrides, arguments.seeds, arguments.work) for arm in arms]
    paces = measure_pace(configs, arguments.repeats, arguments.seconds) if arguments.repeats else {}
    print(summarise(measured, paces))
    report = {
        **head,
        "arms": {m.arm.name: _describe(m, measured[0], configs[m.arm.name], paces.get(m.arm.name)) for m in measured},
    }
    if arguments.json:
        write_json(arguments.json, report)
    if arguments.plot:
        save_chart(draw_methods(report), arguments.plot)


def _describe(measured: Measured, first: Measured, config: Config, pace: Pace | None) -> dict:
    """Plain values for a report; ``first`` is the arm with which the others are compared."""
    differences = {key: _paired(first, measured, key) for key in ACCURACIES} if measured is not first else {}
    return {
        "overrides": measured.arm.overrides,
        "config": to_dict(config),
        "mean": {key: measured.mean(key) for key in ACCURACIES},
        "standard_error": {key: measured.standard_error(key) for key in ACCURACIES},
        "first_arm_ahead": {key: {"mean": mean, "standard_error": error} for key, (mean, error) in differences.items()},
        "pace": pace and dataclasses.asdict(pace),
        "runs": measured.runs,
    }


def parse_arm(text: str) -> Arm:
    """Read ``NAME key=value ...``.

    Raises:
        UserError: there is no name, or it cannot be the name of a folder.
    """
    name, *overrides = text.split() or [""]
    if not name or "=" in name or "/" in name or name.startswith("."):
        raise UserError(f"--arm {text!r} must have the form 'NAME key=value ...'")
    return Arm(name, tuple(overrides))


def run_arm(arm: Arm, config: str, overrides: Sequence[str], seeds: Sequence[int], work: Path) -> Measured:
    """Train and evaluate an arm with every seed, unless already done.

    Raises:
        UserError: a wrong key, a folder that holds another run, or a training that failed.
    """
    runs = []
    for seed in seeds:
        directory = work / arm.name / f"seed{seed}"
        keys = [*overrides, *arm.overrides, f"train.seed={seed}", f"run.dir={directory}"]
        _train(resolve(load_config(config, keys)), [config, *keys], directory)
        runs.append({"seed": seed, **_figures(directory)})
    return Measured(arm, runs)


def _train(config: Config, words: Sequence[str], directory: Path) -> None:
    written = directory / "config.yaml"
    if written.exists() and to_dict(load_config(written)) != to_dict(config):
        raise UserError(f"{directory} holds a run of another config: name another --work, or remove it")
    if (directory / "backbone.safetensors").exists():
        return
    train = [sys.executable, str(Path(__file__).resolve().parents[2] / "train.py"), "-c", *words, "--resume", "auto"]
    print(f"== {directory}", flush=True)
    code = subprocess.run(train).returncode
    if code:
        raise UserError(f"the training in {directory} ended with exit code {code}; its checkpoints are kept")


def _figures(directory: Path) -> dict:
    """The accuracies of a finished run on val, and its last diagnostics."""
    file = directory / "evaluation.json"
    if not file.exists():
        model = load(directory)
        evaluation = OfflineEvaluation(model, open_packed(model.config.data.dir))
        write_json(file, [build_protocol(name).measure(evaluation) for name in ("knn", "linear")])
    knn, linear = json.loads(file.read_text())
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    curve = {line["epoch"]: line["knn_top1"] for line in lines if "knn_top1" in line}
    last = {key: value for line in lines for key, value in line.items()}
    environment = json.loads((directory / "environment.json").read_text())
    return {
        "commit": environment["commit"],
        "dirty": environment["dirty"],
        "hardware": environment["hardware"],
        "knn_curve": curve,
        "knn_top1": knn["top1"],
        "linear_top1": linear["top1"],
        "count": knn["count"],
        **{key: last[key] for key in ("online_top1", "loss", *HEALTH) if key in last},
        **{key: knn[key] for key in ("rankme", "uniformity", "alignment")},
    }


def measure_pace(configs: Mapping[str, Config], repeats: int, seconds: float) -> dict[str, Pace]:
    """Measure how fast each arm trains on this machine: a block of each in turn, each in its own process."""
    with ExitStack() as closing:
        spawn = multiprocessing.get_context("spawn")
        homes = {name: closing.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for name in configs}
        for name, config in configs.items():
            homes[name].submit(_open_run, config, seconds).result()
        blocks: dict[str, list[float]] = {name: [] for name in configs}
        for _ in range(repeats):
            for name, home in homes.items():
                blocks[name].append(home.submit(_train_block).result())
        memory = {name: home.submit(_close_run).result() for name, home in homes.items()}
    return {
        name: Pace(statistics.median(rates), min(rates), max(rates), repeats, memory[name])
        for name, rates in blocks.items()
    }


_run: StageProfiler  # one per process of measure_pace


def _open_run(config: Config, seconds: float) -> None:
    global _run
    _run = StageProfiler(config, repeats=1, seconds=seconds)
    _run.end_to_end()


def _train_block() -> float:
    return _run.end_to_end().per_second


def _close_run() -> dict[str, int]:
    _run.close()
    return _run.memory()


def summarise(measured: Sequence[Measured], paces: dict[str, Pace]) -> str:
    """A table, and the difference of each other arm to the first one."""
    width = max(len(m.arm.name) for m in measured)
    heads = "".join(f"{head:>15}" for head in ACCURACIES.values()) + "".join(f"{head:>10}" for head in HEALTH.values())
    lines = [f"{'':<{width}} seeds  untrained{heads}{'images/s':>10}{'memory':>10}"]
    for m in measured:
        untrained = statistics.fmean(next(iter(run["knn_curve"].values()), math.nan) for run in m.runs)
        cells = "".join(f"{_percent(m.mean(key), m.standard_error(key)):>15}" for key in ACCURACIES)
        cells += "".join(f"{'-' if (value := m.mean(key)) is None else f'{value:.3f}':>10}" for key in HEALTH)
        if m.arm.name in paces:
            pace = paces[m.arm.name]
            peak = pace.memory.get("gpu_bytes", pace.memory["host_bytes"])
            cells += f"{pace.images_per_second:>10,.0f}{f'{peak / 1e9:.1f} GB':>10}"
        lines.append(f"{m.arm.name:<{width}} {len(m.runs):>5}  {100 * untrained:>9.1f}{cells}")
    first, *others = measured
    for other in others:
        cells = ", ".join(
            f"{name} {_percent(*_paired(first, other, key), sign='+')}" for key, name in ACCURACIES.items()
        )
        lines.append(f"{first.arm.name} - {other.arm.name}, paired by seed, points: {cells}")
    return "\n".join(lines)


def _percent(mean: float | None, error: float | None, sign: str = "") -> str:
    if mean is None:
        return "-"
    return f"{100 * mean:{sign}.1f}" + ("" if error is None else f" +- {100 * error:.1f}")


def _paired(first: Measured, other: Measured, key: str) -> tuple[float | None, float | None]:
    """The mean lead of ``first`` over the seeds, and its standard error; None: not measured."""
    theirs = {run["seed"]: run for run in other.runs}
    pairs = [(run, theirs[run["seed"]]) for run in first.runs]
    differences = [{key: run[key] - their[key]} for run, their in pairs if key in run and key in their]
    paired = Measured(first.arm, differences)
    return paired.mean(key), paired.standard_error(key)
