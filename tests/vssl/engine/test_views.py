"""Runs with more views than two and with local ones, over every loader that can feed them."""

import math

import pytest

from pipelines.errors import UserError
from support.training import assert_a_killed_run_ends_the_same, losses
from vssl.engine.trainer import Trainer

MULTI_CROP = ("augment.local_views=2", "augment.local_size=8", "data.image_size=16")


def test_a_killed_run_with_local_views_ends_the_same(config, tmp_path):
    assert_a_killed_run_ends_the_same(config, tmp_path, *MULTI_CROP, "augment.views=3")


@pytest.mark.parametrize("loader", ["resident", "ffcv", "dali", "torch"])
def test_every_loader_feeds_local_views(config, folders, packed, tmp_path, loader):
    form = {"torch": "resident"}.get(loader, loader)
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    found = packed("tiny", form)
    keys = (f"data.dir={found.dir}", f"data.loader={loader}", "data.limit=0", "data.batch_size=20", "train.epochs=1")
    trainer = Trainer(config(*MULTI_CROP, *keys, "train.log_every=1", "data.workers=1"))
    batch = next(iter(trainer.loader))
    assert batch.pixels.shape[:2] == (20, 1)
    views = trainer.train_step.views(batch.pixels, batch.size, batch.index)
    assert views.full.shape == (40, 3, 16, 16) and views.local.shape == (40, 3, 8, 8)
    trainer.loader.set_epoch(0)
    trainer.fit()
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run").values())


@pytest.mark.parametrize("loader", ["ffcv", "torch"])
def test_a_loader_that_should_cut_crops_refuses_other_views(config, packed, loader):
    found = packed("tiny", "ffcv")
    keys = (f"data.dir={found.dir}", f"data.loader={loader}", "data.limit=0", "data.crops=loader", "data.batch_size=20")
    with pytest.raises(UserError, match=r"^data\.crops=loader: loaders cut two full views only; set data\.crops=auto"):
        Trainer(config(*MULTI_CROP, *keys))


def test_local_views_grow_with_progressive_resolution(config, capsys):
    trainer = Trainer(config(*MULTI_CROP, "train.first_size=8", "data.limit=32", "train.epochs=4"))
    sides = []
    trainer.train_step.method.register_forward_pre_hook(
        lambda _, inputs: sides.append((inputs[0].full.shape[-1], inputs[0].local.shape[-1]))
    )
    trainer.fit()
    assert sides == [(8, 8), (8, 8), (16, 8), (16, 8)]


def test_views_are_part_of_a_runs_identity(config):
    trainer = Trainer(config(*MULTI_CROP, "train.epochs=1"))
    trainer.fit()
    trainer.directory.close()
    with pytest.raises(UserError, match=r"augment\.local_views was 2, now 3: that would be another run"):
        Trainer(config(*MULTI_CROP, "train.epochs=2", "augment.local_views=3"), resume="auto")
