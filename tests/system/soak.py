#!/usr/bin/env python
"""Break things on purpose: killed runs, damaged data, damaged configs, many epochs. One table; exit code 1 if a promise
of docs/reliability.md was not kept."""

import argparse
import contextlib
import dataclasses
import gc
import importlib
import json
import operator
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # children are forked, and threads do not survive that
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/, for support
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project

import numpy as np
import torch
import yaml
from PIL import Image

from pipelines.convert import convert
from pipelines.errors import run_command
from pipelines.formats.packed import open_packed
from pipelines.loading.build import build_loader
from support.children import in_child
from support.mutation import mutate, mutate_config
from support.processes import kill_rank, torchrun, wait_for_step, written
from support.training import SMALL, lines
from vssl.commands.arguments import whole
from vssl.engine.config import Config, load_config
from vssl.engine.trainer import Trainer

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
TINY = (
    *SMALL,
    "data.image_size=8",
    "data.limit=128",
    "data.batch_size=32",
    "data.workers=1",
    "method.predictor_hidden=16",
    "train.log_every=2",
    "checkpoint.every_steps=1",  # so that many kills hit a checkpoint
)


class Report:
    """Rows of the table, and the failures."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []
        self.failures: list[str] = []

    @contextlib.contextmanager
    def row(self, name: str) -> Iterator[dict]:
        """Yields a dict that collects the row's figures."""
        started, figures = time.monotonic(), {}
        yield figures
        text = ", ".join(f"{value} {key}" for key, value in figures.items())
        self.rows.append((name, text, f"{time.monotonic() - started:.0f} s"))

    def fail(self, what: str) -> None:
        self.failures.append(what)

    def table(self) -> str:
        widths = [max(len(row[column]) for row in self.rows) for column in range(3)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in self.rows
        )


def formats() -> list[str]:
    """Formats whose loaders can run here. Their libraries are imported once, before the children are forked."""
    found = ["resident"]
    for format, module in (("ffcv", "ffcv.libffcv"), ("dali", "nvidia.dali")):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
            found.append(format)
    return found


def make_data(folder: Path) -> dict[str, Path]:
    """Small packed sets in each format: the digits, and JPEG pictures of several sizes unless it stores pixels."""
    source, rng = folder / "source", np.random.default_rng(0)
    for number in range(64):
        path = source / "train" / f"class{number % 4}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        side = (65 + number % 40, 65 + number % 23)  # smaller ones become pixels in the ffcv format
        Image.fromarray(coarse).resize(side, Image.Resampling.BICUBIC).save(path, quality=90)
    packed = {}
    for format in formats():
        for name, (dataset, images) in {"digits": ("digits", None), "JPEG": ("folder", source)}.items():
            if (format, name) != ("resident", "JPEG"):
                packed[f"{format}, {name}"] = out = folder / f"{format}-{name}"
                convert(dataset, images, out, format=format, workers=1)
    return packed


def shares(count: int, packed: dict[str, Path]) -> list[tuple[str, Path, int]]:
    """``count`` divided among the packed sets; sets whose part is 0 are left out."""
    parts = [(count + len(packed) - 1 - place) // len(packed) for place in range(len(packed))]
    return [(name, path, part) for (name, path), part in zip(packed.items(), parts, strict=True) if part]


def kills(report: Report, name: str, data: Path, count: int, folder: Path, rng: random.Random) -> None:
    """Runs killed at a random moment, resumed, and compared with an undisturbed run."""

    def train(run: Path, resume: str | None) -> str:
        Trainer(load_config(DEMO, [*TINY, f"data.dir={data}", f"run.dir={run}"]), resume).fit()
        return "done"

    with report.row(f"{count} runs killed, then resumed ({name})") as figures:
        whole = folder / "whole"
        shutil.rmtree(whole, ignore_errors=True)
        started = time.monotonic()
        answer = in_child(lambda: train(whole, None))
        if answer != "done":
            report.fail(f"{name}: the undisturbed run: {answer}")
            return
        duration = time.monotonic() - started
        expected = (whole / "backbone.safetensors").read_bytes()
        outcomes = Counter({"ended with the same weights": 0, "killed while saving": 0})
        for number in range(count):
            run = folder / f"run-{number}"
            answer = "done"
            while answer != "killed":  # a run that ended before it was killed does not count
                shutil.rmtree(run, ignore_errors=True)
                answer = in_child(lambda run=run: train(run, None), kill_after=rng.uniform(0.05, 1.0) * duration)
            outcomes["killed while saving"] += bool(list(run.glob("checkpoints/.*.tmp-*")))
            answer = in_child(lambda run=run: train(run, "auto"))
            exported = run / "backbone.safetensors"
            same = answer == "done" and exported.read_bytes() == expected
            outcomes["ended with the same weights"] += same
            try:
                lines(run)
                tidy = not list(run.glob("**/.*.tmp-*"))
            except (OSError, ValueError):
                tidy = False
            if not (same and tidy):
                report.fail(f"{name}, killed run {number}: {answer}, same weights: {same}, tidy: {tidy}")
            shutil.rmtree(run)
        figures |= outcomes


def restarts(report: Report, data: Path, count: int, folder: Path, rng: random.Random) -> None:
    """Runs of two processes, one of which is killed in the middle: torchrun starts both again, and the weights at the
    end are those of an undisturbed run."""

    def train(run: Path, victim: int | None = None, step: int = 0) -> str:
        """Train; after ``step``, kill the process ``victim``. Returns what went wrong, else an empty text."""
        overrides = (f"data.dir={data}", f"run.dir={run}", "train.epochs=10", "train.log_every=1")  # 40 steps
        process = torchrun(2, "-c", str(DEMO), *TINY, *overrides)
        try:
            if victim is not None:
                wait_for_step(process, run, step)
                time.sleep(rng.uniform(0, 0.05))  # anywhere in a step
                kill_rank(process, victim)
            output, _ = process.communicate(timeout=600)
            return output if process.returncode else ""
        except (AssertionError, LookupError, OSError, subprocess.TimeoutExpired) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            process.terminate()  # torchrun ends its processes too
            process.wait()

    with report.row(f"{count} runs of two processes, one of each killed") as figures:
        if failure := train(folder / "pair"):
            report.fail(f"the undisturbed run of two processes: {failure}")
            return
        expected = (folder / "pair" / "backbone.safetensors").read_bytes()
        same = 0
        for number in range(count):
            # From the third step on a checkpoint has been written.
            run, victim, step = folder / f"pair-{number}", rng.randrange(2), rng.randrange(3, 30)
            failure = train(run, victim, step)
            restarted = sum("resumed_from_step" in line for line in written(run)) == 1
            good = not failure and restarted and (run / "backbone.safetensors").read_bytes() == expected
            same += good
            if not good:
                report.fail(f"process {victim} killed after step {step}, restarted: {restarted}: {failure}")
        figures["ended with the same weights"] = same


def read_epoch(packed_dir: Path) -> str:
    """A digest of an epoch of training batches with every sample in it, or an exception."""
    all_samples = ("data.limit=0", "data.batch_size=16", "data.drop_last=false")
    config = load_config(DEMO, [*TINY, f"data.dir={packed_dir}", *all_samples])
    packed = open_packed(packed_dir)
    device = torch.device("cpu")
    with contextlib.closing(
        build_loader(config.data, config.augment, packed, "train", train=True, seed=0, device=device)
    ) as loader:
        return "digest " + str(hash(tuple(part.numpy().tobytes() for batch in loader for part in batch)))


def verify(packed_dir: Path) -> str:
    open_packed(packed_dir, verify=True)
    return "accepted"


def data_fuzz(report: Report, name: str, source: Path, count: int, folder: Path, rng: random.Random) -> None:
    """A file of a packed set is damaged: reading it is refused, or gives what it gave before; it neither crashes nor
    hangs. --verify must refuse it."""
    with report.row(f"{count} damaged files ({name})") as figures:
        whole = in_child(lambda: read_epoch(source))
        if not whole.startswith("digest"):
            report.fail(f"{name}, undamaged: {whole}")
            return
        outcomes = Counter({"refused": 0, "without effect": 0, "changed unnoticed": 0})
        broken = folder / "broken"
        for case in range(count):
            shutil.rmtree(broken, ignore_errors=True)
            shutil.copytree(source, broken)
            victim = rng.choice(sorted(path for path in broken.iterdir() if not path.name.startswith("val")))
            victim.write_bytes(mutate(victim.read_bytes(), rng))
            answer = in_child(lambda: read_epoch(broken))
            thorough = in_child(lambda: verify(broken))
            if answer.startswith("refused"):
                outcomes["refused"] += 1
            elif answer == whole:
                outcomes["without effect"] += 1
            else:
                unnoticed = answer.startswith("digest")
                outcomes["changed unnoticed"] += unnoticed
                report.fail(f"{name}, case {case}, {victim.name}: {'changed unnoticed' if unnoticed else answer}")
            # The manifest itself has no checksum: what it says must fit the files, its other text may differ.
            if not thorough.startswith("refused") and (victim.name != "manifest.json" or thorough != "accepted"):
                report.fail(f"{name}, case {case}, {victim.name}, --verify: {thorough}")
        figures |= outcomes


def one_step(config: Config) -> Config:
    """The same run, cut to the first batch."""
    data, size = config.data, config.data.batch_size
    limit = min(data.limit or size, size)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(data, limit=limit),
        train=dataclasses.replace(config.train, epochs=1),
    )


def config_fuzz(report: Report, count: int, data: Path, folder: Path, rng: random.Random) -> None:
    """A config is damaged: it is refused with one line, or it is another valid config, which trains a step."""
    overrides = [*TINY, f"data.dir={data}"]
    base = folder / "base.yaml"
    values = yaml.safe_load(DEMO.read_text())
    for override in overrides:
        key, _, value = override.partition("=")
        section, name = key.split(".")
        values.setdefault(section, {})[name] = yaml.safe_load(value)
    values["run"] = {"dir": str(folder / "config-run")}
    base.write_text(yaml.safe_dump(values, sort_keys=False))
    original = load_config(base)

    def start(path: Path) -> str:
        config = load_config(path)
        if config == original:
            return "the same"
        run = Path(config.run.dir)
        if folder not in run.parents:
            return "another valid config"  # one that would write elsewhere
        Trainer(one_step(config)).fit()
        return "another valid config"

    with report.row(f"{count} damaged configs") as figures:
        outcomes = Counter({"refused": 0, "another valid config": 0, "the same": 0})
        for case in range(count):
            path = folder / "damaged.yaml"
            path.write_text(mutate_config(base.read_text(), rng))
            answer = in_child(lambda path=path: start(path))
            kind = answer.split(":")[0]
            outcomes[kind] += 1
            if kind not in ("refused", "another valid config", "the same"):
                (folder / f"failed-{case}.yaml").write_text(path.read_text())
                report.fail(f"config case {case}: {answer}\n{path.read_text()}")
            shutil.rmtree(folder / "config-run", ignore_errors=True)
        figures |= outcomes


def usage() -> tuple[int, int, int]:
    """Resident memory in bytes, threads and open files of this process."""
    gc.collect()
    memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return memory, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def resources(report: Report, epochs: int, packed: dict[str, Path]) -> None:
    """Many epochs of every loader, every third one stopped early: memory, threads and open files must not grow."""

    def run(loader: str, source: Path) -> str:
        config = load_config(DEMO, [*TINY, f"data.dir={source}", f"data.loader={loader}", "data.batch_size=16"])
        data = open_packed(source)
        device = torch.device("cpu")
        iterate = build_loader(config.data, config.augment, data, "train", train=True, seed=0, device=device)
        warm = None
        for epoch in range(epochs):
            iterate.set_epoch(epoch)
            for number, _ in enumerate(iterate):
                if epoch % 3 == 2 and number == 1:
                    break
            if epoch == max(2, epochs // 5):
                iterate.set_epoch(0)  # which ends work that an epoch left running
                warm = usage()
        iterate.set_epoch(0)
        deadline = time.monotonic() + 10  # the thread of a closed multiprocessing queue ends by itself, a moment later
        while any(map(operator.gt, (end := usage())[1:], warm[1:])) and time.monotonic() < deadline:
            time.sleep(0.01)
        iterate.close()
        return json.dumps([warm, end])

    for name, source in packed.items():
        for loader in ("auto", "torch"):
            with report.row(f"{epochs} epochs ({name}, {loader} loader)") as figures:
                answer = in_child(lambda loader=loader, source=source: run(loader, source))
                if not answer.startswith("["):
                    report.fail(f"{epochs} epochs, {name}, {loader} loader: {answer}")
                    continue
                (memory, threads, files), (memory_end, threads_end, files_end) = json.loads(answer)
                growth = (memory_end - memory) / 2**20
                figures |= {"MiB more": f"{growth:+.1f}", "threads": threads_end, "open files": files_end}
                if growth > 8 or threads_end > threads or files_end > files:
                    report.fail(f"{name}, {loader} loader grew: {growth:.1f} MiB, {threads}->{threads_end} threads, "
                                f"{files}->{files_end} files")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=whole(0), default=20, help="runs to kill and resume")
    parser.add_argument("--restarts", type=whole(0), default=5, help="runs of two processes, one of which is killed")
    parser.add_argument("--data", type=whole(0), default=200, help="damaged data files")
    parser.add_argument("--configs", type=whole(0), default=200, help="damaged configs")
    parser.add_argument("--epochs", type=whole(0), default=50, help="epochs of each loader")
    parser.add_argument("--seed", type=whole(0), default=0, help="of what is broken, and when")
    arguments = parser.parse_args()
    report, rng = Report(), random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        packed = make_data(folder)
        for share in shares(arguments.kills, packed):
            kills(report, *share, folder, rng)
        if arguments.restarts:
            restarts(report, packed["resident, digits"], arguments.restarts, folder, rng)
        for share in shares(arguments.data, packed):
            data_fuzz(report, *share, folder, rng)
        if arguments.configs:
            config_fuzz(report, arguments.configs, packed["resident, digits"], folder, rng)
        if arguments.epochs:
            resources(report, arguments.epochs, packed)
    print(report.table())
    for failure in report.failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    print(f"{len(report.failures)} failures")
    return int(bool(report.failures))


if __name__ == "__main__":
    run_command(main)
