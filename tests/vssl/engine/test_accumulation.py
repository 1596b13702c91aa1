"""Micro-batches: what their gradients, moving averages and losses are."""

import pytest
import torch

from support.training import (
    first_batch,
    losses,
)
from vssl.engine.trainer import Trainer


def test_accumulation_averages_the_gradients_of_micro_batches(config, tmp_path):
    whole = Trainer(config(f"run.dir={tmp_path / 'a'}"))
    halves = Trainer(config("train.accumulate=2", f"run.dir={tmp_path / 'b'}"))
    batch = first_batch(whole)
    parts = [type(batch)(*(t[i::2] for t in batch)) for i in (0, 1)]
    expected = []
    for part in parts:
        whole.train_step.backward(part)
        expected.append([w.grad.clone() for w in whole.train_step.method.student.parameters()])
        # BatchNorm's running statistics do not enter a training step's gradients.
    halves.train_step.backward(batch)
    for a, b, ours in zip(*expected, halves.train_step.method.student.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, (a + b) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("accumulate", "sizes"), [(4, [3, 2, 2, 2]), (2, [4, 3])])
def test_a_ragged_batch_weights_its_micro_batches_by_their_images(config, tmp_path, accumulate, sizes):
    whole = Trainer(config(f"run.dir={tmp_path / 'a'}"))
    several = Trainer(config(f"train.accumulate={accumulate}", f"run.dir={tmp_path / 'b'}"))
    batch = first_batch(whole)
    ragged = type(batch)(*(part[: sum(sizes)] for part in batch))
    weights = list(whole.train_step.method.student.parameters())
    gradients, loss = [torch.zeros_like(weight) for weight in weights], 0.0
    for first, size in enumerate(sizes):
        part, share = [tensor[first::accumulate] for tensor in ragged], size / sum(sizes)
        assert len(part[0]) == size
        loss += share * whole.train_step.backward(type(batch)(*part))["loss"].item()
        torch._foreach_add_(gradients, [weight.grad for weight in weights], alpha=share)
    assert several.train_step.backward(ragged)["loss"].item() == pytest.approx(loss, rel=1e-5)
    for weight, gradient in zip(several.train_step.method.student.parameters(), gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["dino", "byol"])
def test_moving_averages_move_once_per_step(config, tmp_path, method):
    """Without BatchNorm accumulated steps of DINO are those of whole batches; BatchNorm's first averages are, too."""
    network, images = {"dino": ("support.networks:Dropping", 96), "byol": ("resnet8", 32)}[method]
    keys = (f"method.name={method}", f"model.backbone={network}", f"data.limit={images}", "train.epochs=1")

    def trained(parts):
        trainer = Trainer(
            config(
                *keys,
                "train.log_every=1",
                "optim.lr=0.01",
                f"train.accumulate={parts}",
                f"run.dir={tmp_path / str(parts)}",
            )
        )
        trainer.fit()
        return trainer.train_step.method.state_dict(), losses(tmp_path / str(parts))

    (whole, loss), (parts, other) = trained(1), trained(4)
    if method == "dino":
        assert other == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(parts["centre"], whole["centre"], rtol=1e-4, atol=1e-6)
    else:
        name = "student.backbone.bn1.running_mean"
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("method", "said"), [("moco_v3", True), ("vicreg", True), ("lejepa", True), ("byol", False)])
def test_a_method_says_what_a_micro_batch_means_for_it(config, capsys, method, said):
    keys = (f"method.name={method}", "data.limit=64", "train.epochs=1", "train.accumulate=2")
    Trainer(config(*keys)).fit()
    assert ("train.accumulate=2 micro-batches of 16 images: " in capsys.readouterr().err) == said
