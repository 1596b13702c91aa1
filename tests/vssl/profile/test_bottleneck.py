"""Which stage is named, and what is advised."""

import pytest

from vssl.profile.bottleneck import advise, name_bottleneck


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
