"""The throughput program: what is measured, what the figures mean, and which bottleneck they name."""

import dataclasses
import json
import math
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from pipelines.batch import Batch
from pipelines.convert import convert
from support.programs import run_program
from vssl.config import to_yaml
from vssl.profile.bottleneck import advise, name_bottleneck
from vssl.profile.floors import count_flops
from vssl.profile.stages import StageProfiler
from vssl.profile.timing import Timer

QUICK = {"repeats": 2, "seconds": 0.02}


def pack_noise(folder, format, side, count):
    """A packed data set of noise images, ``side`` x ``side`` pixels, as JPEGs of the highest quality."""
    generator = np.random.default_rng(0)
    source = folder / "source"
    source.mkdir()
    for number in range(count):
        pixels = generator.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(source / f"{number:03d}.jpg", quality=95)
    convert("folder", source, folder / "packed", format=format, workers=1)
    return folder / "packed"


def measured(config, change=None):
    profiler = StageProfiler(config, **QUICK)
    if change is not None:
        change(profiler)
    try:
        return profiler.measure()
    finally:
        profiler.close()


class Throttled:
    """A loader that waits before it hands out a batch."""

    def __init__(self, loader, seconds):
        self._loader, self._seconds = loader, seconds

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def __len__(self):
        return len(self._loader)

    def __iter__(self):
        for batch in self._loader:
            time.sleep(self._seconds)
            yield batch


def test_the_program_writes_every_figure(config, tmp_path):
    settings = config("data.batch_size=64")
    overrides = [
        f"{section}.{key}={json.dumps(value)}"
        for section, values in dataclasses.asdict(settings).items()
        for key, value in values.items()
        if value is not None
    ]
    out, plot, trace = (tmp_path / name for name in ("t.json", "t.png", "t.trace"))
    command = ["tools/throughput.py", "-c", "configs/demo.yaml", *overrides]
    command += ["--repeats", "2", "--seconds", "0.02", "--json", out, "--plot", plot, "--trace", trace]
    pytest.importorskip("matplotlib")
    done = run_program(*command)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    # Resident data on a CPU: nothing to decode, nothing to copy.
    assert list(report["stages"]) == ["load", "augment", "step", "end_to_end"]
    for stage in report["stages"].values():
        assert 0 < stage["low"] <= stage["images_per_second"] <= stage["high"]
        assert stage["repeats"] == 2
        assert 63_999 / stage["high"] <= stage["milliseconds"] <= 64_001 / stage["low"]
    assert report["bottleneck"] in report["stages"]
    assert report["bottleneck"] in report["advice"]
    assert report["advice"] in done.stdout
    end_to_end = report["stages"]["end_to_end"]["images_per_second"]
    assert report["floor_fraction"] == pytest.approx(end_to_end / min(report["floors"].values()))
    assert set(report["step_milliseconds"]) == {
        "forward",
        "backward",
        "network",
        "optimizer_and_ema",
    }
    step, update = report["stages"]["step"]["milliseconds"], report["step_milliseconds"]["optimizer_and_ema"]
    assert report["update_share"] == pytest.approx(update / step)
    assert report["config"]["data"]["batch_size"] == 64
    assert report["environment"]["hardware"]["cores"] >= 1
    assert "tools/throughput.py" in report["command"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert json.loads(trace.read_text())["traceEvents"]
    assert not (tmp_path / "run").exists()  # measuring is no run


def test_one_process_measures_what_several_exchange(config, tmp_path):
    (tmp_path / "c.yaml").write_text(to_yaml(config()))
    command = ["-c", tmp_path / "c.yaml", "--exchange", "--repeats", "1", "--seconds", "0.01", "--json", tmp_path / "t"]
    done = run_program("tools/throughput.py", *command)
    assert done.returncode == 0, done.stderr
    assert "1 process: network" in done.stdout
    shared = json.loads((tmp_path / "t").read_text())["processes"]
    assert shared["count"] == 1 and shared["statistics_exchanges"] > 0 and shared["all_reduce_milliseconds"] > 0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("data.dir=/nonexistent", "/nonexistent"),
        ("--json=docs", "cannot write docs: it is a directory"),
        ("--plot=README.md/p.png", "cannot write README.md/p.png: Not a directory"),
        ("--trace=README.md/t", "cannot write README.md/t: Not a directory"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(argument, message):
    done = run_program("tools/throughput.py", "-c", "configs/demo.yaml", argument)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_a_throttled_reader_is_found(config):
    def throttle(profiler):
        profiler.loader = Throttled(profiler.loader, seconds=0.5)

    report = measured(config("data.batch_size=8"), throttle)
    assert report["bottleneck"] == "load"
    assert report["stages"]["load"]["images_per_second"] < 16
    assert report["ceiling_fraction"] < 0.5


def test_slow_decoding_is_found(config, tmp_path):
    pytest.importorskip("ffcv")
    data = pack_noise(tmp_path, "ffcv", side=1200, count=8)
    report = measured(config(f"data.dir={data}", "data.batch_size=8", "data.workers=1", "data.limit=0"))
    assert report["bottleneck"] in ("decode", "load")
    assert report["stages"]["decode"]["images_per_second"] < report["stages"]["step"]["images_per_second"]
    assert min(report["floors"], key=report["floors"].get) == "decode"


def test_an_oversized_augmentation_is_found(config, tmp_path):
    # Views of 8 pixels from images of 512: each pixel of a view is the mean of thousands.
    data = pack_noise(tmp_path, "resident", side=512, count=8)
    report = measured(config(f"data.dir={data}", "data.batch_size=8", "data.limit=0"))
    assert report["bottleneck"] == "augment"
    assert "augment." in report["advice"] or "data.canvas" in report["advice"]


def test_an_ordinary_run_waits_for_the_step(config):
    report = measured(config("data.batch_size=16", "data.image_size=32"))
    assert report["bottleneck"] == "step"
    assert "model.backbone" in report["advice"]


@pytest.mark.parametrize(
    ("times", "bottleneck"),
    [
        ({"load": 2, "decode": 1.5, "step": 1, "augment": 0.9, "network": 0.1}, "decode"),
        ({"load": 2, "decode": 0.5, "step": 1, "augment": 0.9, "network": 0.1}, "load"),
        ({"load": 2, "decode": 0.5, "copy": 1.9, "step": 1, "augment": 0.9, "network": 0.1}, "copy"),
        ({"load": 0.9, "decode": 0.8, "step": 1, "augment": 0.2, "network": 0.7, "end_to_end": 1.5}, "step"),
        ({"load": 0.1, "step": 1, "augment": 0.6, "network": 0.3}, "augment"),
    ],
)
def test_the_bottleneck_is_the_slower_side_or_the_larger_part_of_it(times, bottleneck):
    assert name_bottleneck(times) == bottleneck


@pytest.mark.parametrize(
    ("bottleneck", "device", "workers", "key"),
    [
        ("decode", "cuda", 1, "data.workers"),
        ("decode", "cuda", 10_000, "data.dir"),
        ("load", "cuda", 10_000, "data.dir"),
        ("copy", "cuda", 1, "data.canvas"),
        ("augment", "cuda", 1, "augment.blur"),
        ("step", "cpu", 1, "model.backbone"),
        ("step", "cuda", 1, "train.compile"),
    ],
)
def test_the_advice_names_a_key_that_exists(config, monkeypatch, bottleneck, device, workers, key):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    costs = {"augment.blur": 0.7, "data.canvas": 0.2}
    advice = advise(bottleneck, config(), "ffcv", device, workers, costs)
    assert key in advice
    section, name = key.split(".")
    assert hasattr(getattr(config(), section), name)


def test_an_image_costs_about_eight_forwards(config):
    profiler = StageProfiler(config("data.image_size=32", "method.name=byol"), **QUICK)
    batch = next(iter(profiler.loader))
    encoder = profiler.step.method.student
    views = profiler.step.views(batch.pixels, batch.size, batch.index).full
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(views)
    forward = counter.get_total_flops() / len(views)
    counted = count_flops(profiler.step, batch)
    profiler.close()
    # A forward of the teacher per view, and three forwards (one forward, two backward) of the student per view, less
    # the first layer's gradient to its input, plus a predictor.
    assert 7 * forward < counted < 8.2 * forward


def test_flops_count_images_and_not_batches(config):
    profiler = StageProfiler(config(), **QUICK)
    batch = next(iter(profiler.loader))
    few = Batch(*(part[:8] for part in batch))
    assert count_flops(profiler.step, batch) == count_flops(profiler.step, few)
    profiler.close()


def test_a_rate_is_the_work_over_the_time(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))  # every block lasts a second
    rate = Timer(torch.device("cpu"), repeats=3, seconds=1.0).rate(lambda: 10)
    assert (rate.per_second, rate.low, rate.high, rate.repeats) == (10, 10, 10, 3)
    assert rate.milliseconds == 1000
    assert math.isfinite(rate.cpu_cores)


@pytest.mark.gpu
@pytest.mark.parametrize(("format", "module"), [("resident", "torch"), ("ffcv", "ffcv"), ("dali", "nvidia.dali")])
def test_what_is_decoded_on_the_host_is_copied(config, tmp_path, format, module):
    pytest.importorskip(module)
    data = pack_noise(tmp_path, format, side=32, count=16)
    report = measured(config(f"data.dir={data}", "data.batch_size=8", "data.limit=0", "train.device=cuda"))
    assert ("copy" in report["stages"]) == ("copy" in report["floors"]) == (format == "ffcv")
