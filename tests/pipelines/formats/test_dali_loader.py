"""The dali loader: DALI's operators in our order, on a CPU and on a GPU."""

import contextlib
import ctypes
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.errors import UserError
from pipelines.loading.build import build_loader
from support.damage import DAMAGES, damaged, destroy_huffman_table, destroy_start, halve_height
from support.loading import CPU, DATA, RECIPE, epoch_of, images_of, psnr, whole


def test_dali_scales_images_longer_than_the_canvas_as_the_reference_does(build):
    reference = whole(epoch_of(build("torch", "photographs", "dali", split="val", canvas=64)))
    batch = whole(epoch_of(build("dali", "photographs", split="val", canvas=64)))
    assert batch.pixels.shape == reference.pixels.shape
    assert torch.equal(batch.size, reference.size)
    assert min(map(psnr, images_of(batch), images_of(reference))) > 45


@pytest.mark.parametrize("change", [destroy_start, destroy_huffman_table, *DAMAGES[-3:]])
def test_dali_stops_at_a_damaged_jpeg(packed, tmp_path, change):
    """Even if the checksum matches. Scan damage is left out: DALI may decode it to some picture without an error."""
    pytest.importorskip("nvidia.dali")
    broken = damaged(packed("photographs", "dali"), tmp_path, change, 17, trusted=True)
    data = replace(DATA, loader="dali", drop_last=False)
    with (
        contextlib.closing(build_loader(data, RECIPE, broken, "val", train=False, seed=5, device=CPU)) as sound,
        contextlib.closing(build_loader(data, RECIPE, broken, "train", train=True, seed=5, device=CPU)) as loader,
    ):
        with pytest.raises(UserError, match=r"train-000000\.tar: sample 17 "):
            epoch_of(loader)
        assert len(epoch_of(sound)) == 2


def test_closing_dali_ends_its_threads_and_frees_its_memory(build):
    def resources():
        """Threads, including DALI's own, and megabytes, without memory that the C library keeps for reuse."""
        ctypes.CDLL(None).malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return len(os.listdir("/proc/self/task")), pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    before, _ = resources()
    memory = []
    for _ in range(20):
        loader = build("dali", "photographs", image_size=448)
        batch = next(iter(loader))
        assert resources()[0] > before
        loader.close()
        assert resources()[0] == before
        assert batch.pixels.float().mean() > 1, "a batch that was handed out stays valid"
        del batch
        memory.append(resources()[1])
    assert memory[-1] - memory[9] < 100, "each loader had three batches of 9.6 MB in progress"


def test_reading_without_dali_says_what_to_do(packed, monkeypatch):
    for module in ("nvidia", "nvidia.dali"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"data\.loader=dali needs NVIDIA DALI.* install .* or set data\.loader=torch"):
        build_loader(DATA, RECIPE, packed("tiny", "dali"), "train", train=True, seed=0, device=CPU)
    torch_data = replace(DATA, loader="torch")
    loader = build_loader(torch_data, RECIPE, packed("tiny", "dali"), "train", train=True, seed=0, device=CPU)
    assert len(next(iter(loader)).index) == 8
    loader.close()


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("crops", ["loader", "device"])
@pytest.mark.parametrize("name", ["tiny", "photographs"])
@pytest.mark.parametrize("hw_decoder_load", [0.0, 0.65])
def test_dali_decodes_and_crops_on_a_gpu_as_on_the_cpu(build, cuda, name, crops, hw_decoder_load):
    options = {"crops": crops, "drop_last": False, "canvas": 150}
    expected = whole(epoch_of(build("dali", name, **options), 2))
    batches = epoch_of(build("dali", name, device=cuda, hw_decoder_load=hw_decoder_load, **options), 2)
    assert {tensor.device.type for batch in batches for tensor in batch} == {"cuda"}
    batch = type(batches[0])(*(tensor.cpu() for tensor in whole(batches)))
    assert all(torch.equal(a, b) for a, b in zip(batch[1:], expected[1:], strict=True))
    pairs = zip(batch.pixels, expected.pixels, batch.size.tolist(), strict=True)
    psnrs = [psnr(a[:, :height, :width], b[:, :height, :width]) for a, b, (height, width) in pairs]
    assert np.median(psnrs) >= 35 and min(psnrs) > 25


@pytest.mark.gpu
def test_dali_on_a_gpu_names_a_damaged_sample(packed, tmp_path, cuda):
    pytest.importorskip("nvidia.dali")
    broken = damaged(packed("photographs", "dali"), tmp_path, halve_height, 17, trusted=True)
    data = replace(DATA, loader="dali")
    with (
        contextlib.closing(build_loader(data, RECIPE, broken, "train", train=False, seed=5, device=cuda)) as loader,
        pytest.raises(UserError, match="sample 17"),
    ):
        epoch_of(loader)


@pytest.mark.gpu
def test_dali_works_during_the_capture_of_a_graph(build, cuda):
    """As in training. DALI's threads allocate and wait during the capture, which only mode "thread_local" allows."""
    expected = whole(epoch_of(build("dali", "photographs", device=cuda), 0))
    loader = build("dali", "photographs", device=cuda)
    loader.set_epoch(0)
    value = torch.zeros(1000, device=cuda)
    received = []
    for batch in loader:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(1000):
                value += 1
        graph.replay()
        received.append(batch)
    assert torch.equal(whole(received).pixels, expected.pixels)
    assert value.unique().tolist() == [1000.0 * len(loader)]
