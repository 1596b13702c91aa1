"""LeJEPA: SIGReg against the paper's algorithm in complex numbers, its slices, and methods without any buffer."""

import math

import pytest
import torch

from support.training import everything, first_batch, losses
from support.views import keys, random_views
from vssl.collectives import Peers
from vssl.engine.config import resolve
from vssl.engine.trainer import Trainer
from vssl.methods import build_method
from vssl.methods.lejepa import prediction_loss, sigreg, slices
from vssl.methods.pairs import ViewCounts
from vssl.models.config import ModelConfig

B, D, M = 7, 5, 11


def algorithm_1(x, directions):
    """SIGReg of the paper, line by line: the empirical characteristic function on 17 points, weighted, by ``trapz``."""
    t = torch.linspace(-5, 5, 17, dtype=torch.float64)
    exp_f = torch.exp(-0.5 * t**2)
    x_t = (x.double() @ directions.double()).unsqueeze(2) * t
    ecf = (1j * x_t).exp().mean(0)
    err = (ecf - exp_f).abs().square() * exp_f
    return (torch.trapz(err, t, dim=1) * len(x)).mean()


@pytest.fixture
def embeddings():
    generator = torch.Generator().manual_seed(0)
    return (2 * torch.randn(3, B, D, generator=generator) + 0.5).requires_grad_()


def test_sigreg_is_algorithm_1_of_the_paper_in_value_and_gradient(embeddings):
    directions = slices(keys(torch.arange(B)), D, M)
    ours, reference = sigreg(embeddings, directions), torch.stack([algorithm_1(x, directions) for x in embeddings])
    torch.testing.assert_close(ours.double(), reference, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(value.sum(), embeddings)[0] for value in (ours, reference)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_sigreg_is_least_for_standard_normal_embeddings():
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 2000, 16, generator=generator)
    directions = slices(keys(torch.arange(1)), 16, 64)
    normal = sigreg(sample, directions).item()
    others = {
        "collapsed": 0 * sample,
        "small": 0.5 * sample,
        "shifted": sample + 1,
        "one line": sample[..., :1] + 0 * sample,
    }
    assert 0 < normal < 2
    assert all(sigreg(other, directions).item() > 20 * normal for other in others.values())


def test_the_sample_is_that_of_all_processes(embeddings):
    class Second(Peers):
        """The second of two processes; the first has the first images."""

        def gather(self, rows):
            angle = (embeddings[:, :3] @ directions)[..., None] * torch.linspace(0.0, 5.0, 9)
            theirs = torch.stack([angle.cos().mean(dim=1), angle.sin().mean(dim=1)])
            return torch.cat([theirs[None], rows])

    directions = slices(keys(torch.arange(B)), D, M)
    found = sigreg(embeddings[:, 3:6], directions, peers=Second(distributed=True))
    expected = torch.stack([algorithm_1(x[:6], directions) for x in embeddings])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_slices_are_unit_vectors_and_those_of_the_step():
    first = slices(keys(torch.arange(B), step=3), D, M)
    assert first.shape == (D, M)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(M))
    assert torch.equal(first, slices(keys(torch.arange(100), 5, step=3), D, M))  # of no image and no epoch
    for other in (keys(torch.arange(B), step=4), keys(torch.arange(B), step=3, seed=1)):
        assert not torch.equal(slices(other, D, M), first)
    many = slices(keys(torch.arange(1)), 3, 20_000)
    torch.testing.assert_close(many @ many.T / 20_000, torch.eye(3) / 3, rtol=0, atol=0.02)  # no direction preferred


def test_prediction_is_the_squared_distance_to_the_mean_of_the_full_views(embeddings):
    centre = (embeddings[0] + embeddings[1]) / 2
    distances = [sum((centre - z).square().flatten().tolist()) / (B * D) for z in embeddings]
    assert prediction_loss(embeddings, ViewCounts(2, 1)).item() == pytest.approx(sum(distances) / 3)
    assert prediction_loss(embeddings, ViewCounts(2, 1, 0.5)).item() == pytest.approx(
        (distances[0] + distances[1] + 0.5 * distances[2]) / 2.5
    )


def test_the_loss_weighs_prediction_and_sigreg(config):
    options = resolve(config("method.name=lejepa", "method.sigreg_weight=0.25")).method
    method = build_method(options, ModelConfig(backbone="resnet8"), 16, views=ViewCounts(2, 6)).train()
    loss, _, metrics = method(random_views(B, 2, 6, 16, 8), keys(torch.arange(B), full=2, local=6))
    assert loss.item() == pytest.approx(0.75 * metrics["prediction"].item() + 0.25 * metrics["sigreg"].item())
    assert all(math.isfinite(value) for value in metrics.values())


NAMES = ["resnet8", "timm:vit_tiny_patch16_224"]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_learns_with_two_full_and_six_local_views(config, tmp_path, name):
    """The ViT has no BatchNorm, and its projector none either: nothing but weights is saved."""
    keys = ["method.name=lejepa", f"model.backbone={name}", "data.limit=64", "data.batch_size=16", "train.log_every=1"]
    if name.startswith("timm:"):
        pytest.importorskip("timm")
        keys += ["data.image_size=32", "augment.local_size=16", "method.projector_norm=layer", "train.epochs=1"]
    trainer = Trainer(config(*keys))
    assert trainer.config.augment.local_views == 6
    assert bool(trainer.train_step.method.guarded_buffers()) == (name == "resnet8")
    trainer.fit()
    found = losses(tmp_path / "run")
    assert all(math.isfinite(loss) for loss in found.values()) and found[max(found)] < found[1]


def test_a_bad_step_changes_nothing_without_buffers(config):
    pytest.importorskip("timm")
    keys = ("method.name=lejepa", "model.backbone=timm:vit_tiny_patch16_224", "data.image_size=16", "data.batch_size=4")
    trainer = Trainer(config(*keys, "augment.local_views=0", "method.projector_norm=layer"))
    step, batch = trainer.train_step, first_batch(trainer)
    step.set_schedule(epoch=0, lr=0.01, probe_lr=0.1, tau=0.9)
    step(batch)
    before = everything(trainer)
    weight = next(iter(step.method.parameters()))
    step.method.register_forward_hook(lambda method, inputs, output: output._replace(loss=output.loss * float("nan")))
    step(batch)
    assert step.watch.read()[0] == 1 and torch.isfinite(weight).all()
    assert all(torch.equal(a, b) for a, b in zip(before, everything(trainer), strict=True))


def test_a_weight_without_gradient_stays_as_it_is(config):
    """As a network has them that keeps a classifier, or a token that its features do not use."""
    common = ("method.name=lejepa", "optim.name=adamw", "train.clip_grad=1", "train.epochs=1")
    trainer = Trainer(config(*common, "model.backbone=support.networks:UnusedWeight"))
    trainer.fit()
    method = trainer.train_step.method
    assert torch.equal(method.student.backbone.unused.detach(), torch.ones(3))
    assert all(weight.grad is not None for name, weight in method.named_parameters() if not name.endswith("unused"))
