"""Every loader ends its threads and processes and frees its memory and files, however an epoch ends."""

import os
import subprocess
import sys
import weakref
from importlib.util import find_spec

import pytest

from pipelines.config import DataConfig
from pipelines.loading.threads import worker_count
from support.loading import KINDS, assert_equal, assert_no_more_than, epoch_of, resources, whole


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_after_close(build, kind):
    epoch_of(build(kind))  # the first loader may create resources that torch keeps
    before = resources()
    loader = build(kind)
    for epoch in range(2):
        epoch_of(loader, epoch)
    loader.set_epoch(2)
    next(iter(loader))
    loader.close()
    loader.close()
    assert_no_more_than(before)
    with pytest.raises(RuntimeError, match="closed"):
        iter(loader)


@pytest.mark.parametrize("kind", KINDS)
def test_stopping_epochs_early_does_not_accumulate_resources(build, kind):
    loader = build(kind)
    expected = epoch_of(loader, 9)
    before = resources()
    for epoch in range(4):
        loader.set_epoch(epoch)
        for batch in loader:
            assert len(batch.index) == 8
            break
    del batch  # torch keeps a handle open for every tensor from a worker
    loader.set_epoch(9)
    assert_no_more_than(before)
    assert_equal(list(loader), expected)


@pytest.mark.parametrize("kind", ["ffcv", "dali"])
def test_a_new_iterator_ends_the_previous_one(build, kind):
    loader = build(kind)
    former = iter(loader)
    first = next(former)
    rest = list(loader)
    assert next(former, None) is None
    assert sorted([*first.index.tolist(), *whole(rest).index.tolist()]) == sorted(
        whole(epoch_of(loader)).index.tolist()
    )


def test_resident_images_are_in_memory_once_while_a_loader_holds_them(build):
    first, second = build("resident"), build("resident", train=False)
    assert pixels_of(first) == pixels_of(second) and pixels_of(build("resident", split="val")) != pixels_of(first)
    held = weakref.ref(first._pixels)
    first.close()
    assert held() is not None and len(next(iter(second)).index) == 8
    second.close()
    assert held() is None


def pixels_of(loader):
    return loader._pixels.data_ptr()


def test_the_interpreter_ends_though_a_loader_was_never_closed(folders):
    pytest.importorskip("ffcv")
    kinds = [("ffcv", "ffcv"), ("torch", "ffcv")]
    if find_spec("nvidia") and find_spec("nvidia.dali"):
        kinds.append(("dali", "dali"))
    program = f"""
import torch
from pipelines.loading.build import build_loader
from pipelines.formats.packed import open_packed
from pipelines.config import AugmentConfig, DataConfig
for kind, form in {kinds}:
    data = DataConfig(loader=kind, batch_size=8, workers=2, image_size=8)
    packed = open_packed({str(folders / "tiny-")!r} + form)
    loader = build_loader(data, AugmentConfig(), packed, "train", train=True, seed=0, device=torch.device("cpu"))
    batches = iter(loader)
    print(len(next(batches).index))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, set(done.stdout.split()), done.stderr) == (0, {"8"}, "")


def test_the_cores_are_shared_among_the_processes_of_the_machine(monkeypatch):
    allowed = {0: set(range(16)), os.getppid(): set(range(16))}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: allowed[pid])
    assert worker_count(DataConfig()) == 16 and worker_count(DataConfig(workers=3)) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert worker_count(DataConfig()) == 4
    allowed[0] = {0, 1}  # torchrun --numa-binding gave it its own part
    assert worker_count(DataConfig()) == 2
