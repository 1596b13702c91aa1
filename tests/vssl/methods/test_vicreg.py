"""VICReg: its terms against by-hand references, what they punish, and runs with one and with two processes."""

import functools

import pytest
import torch

from pipelines.errors import UserError
from support.training import assert_a_killed_run_ends_the_same, losses, measured
from support.views import keys, random_views
from vssl.collectives import Peers
from vssl.engine.config import load_config, resolve
from vssl.engine.trainer import Trainer
from vssl.methods import build_method
from vssl.methods.vicreg import covariance_term, variance_term, vicreg_loss
from vssl.models.config import ModelConfig

N, D = 7, 5


@pytest.fixture
def embeddings():
    """[2N, D]: some standard deviations below 1, some above."""
    torch.manual_seed(0)
    return (torch.randn(2 * N, D) * torch.linspace(0.2, 2.0, D)).requires_grad_()


def by_hand(embeddings, invariance, variance, covariance):
    """The three terms in double precision, entry by entry."""
    first, second = embeddings.double().chunk(2)
    s = sum((first[i, d] - second[i, d]) ** 2 for i in range(N) for d in range(D)) / (N * D)
    v = c = 0.0
    for z in (first, second):
        mean = [sum(z[i, d] for i in range(N)) / N for d in range(D)]
        for i in range(D):
            for j in range(D):
                entry = sum((z[n, i] - mean[i]) * (z[n, j] - mean[j]) for n in range(N)) / (N - 1)
                if i == j:
                    v = v + torch.clamp(1 - torch.sqrt(entry + 1e-4), min=0) / D
                else:
                    c = c + entry**2 / D
    return s, v, c, invariance * s + variance * v + covariance * c


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 2.0, 30.0)])
def test_loss_and_gradient_are_those_by_hand(embeddings, weights):
    terms = vicreg_loss(embeddings, *weights, Peers())
    s, v, c, reference = by_hand(embeddings, *weights)
    torch.testing.assert_close(terms["loss"].double(), reference, rtol=1e-5, atol=1e-6)
    for name, term in (("invariance", s), ("variance", v), ("covariance", c)):
        assert terms[name].item() == pytest.approx(term.item(), rel=1e-4) and not terms[name].requires_grad
    gradients = [torch.autograd.grad(value, embeddings)[0] for value in (terms["loss"], reference)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


class Together:
    """All processes simulated in this one: gathering gives the rows of all, in one graph."""

    def __init__(self, parts):
        self.parts = parts

    def gather(self, rows):
        return torch.cat([torch.stack(part.chunk(2), dim=1) for part in self.parts])


def test_the_mean_of_the_processes_gradients_is_that_of_one_process_with_their_batch():
    torch.manual_seed(1)
    images, weight = torch.randn(12, 4), torch.randn(4, D, requires_grad=True)
    weights = (25.0, 25.0, 1.0)
    whole = vicreg_loss(images @ weight, *weights, Peers())["loss"]
    # Process r has images 2r and 2r + 1 in both views.
    parts = [torch.cat([images[2 * r : 2 * r + 2], images[6 + 2 * r : 8 + 2 * r]]) @ weight for r in range(3)]
    mean = sum(vicreg_loss(part, *weights, Together(parts))["loss"] for part in parts) / 3
    torch.testing.assert_close(mean, whole, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(value, weight, retain_graph=True)[0] for value in (mean, whole)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_collapse_is_what_the_variance_term_punishes_most():
    constant = torch.ones(N, D)
    assert variance_term(constant).item() == pytest.approx(1 - 1e-2)
    assert covariance_term(constant).item() == 0
    assert variance_term(100 * torch.randn(N, D)).item() == 0


def test_copied_dimensions_are_what_the_covariance_term_punishes():
    wave = torch.tensor([1.0, 1.0, -1.0, -1.0])
    other = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert covariance_term(torch.stack([wave, other], dim=1)).item() == 0
    # C_12 = C_21 = 4/3, D = 2
    assert covariance_term(torch.stack([wave, wave], dim=1)).item() == pytest.approx(16 / 9)


def test_a_shift_of_all_embeddings_or_another_order_of_images_changes_nothing(embeddings):
    loss = functools.partial(vicreg_loss, invariance=25.0, variance=25.0, covariance=1.0, peers=Peers())
    order = torch.randperm(N)
    reordered = torch.cat([view[order] for view in embeddings.chunk(2)])
    expected = loss(embeddings)["loss"]
    torch.testing.assert_close(loss(embeddings + torch.arange(D))["loss"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss(reordered)["loss"], expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def method(config):
    torch.manual_seed(0)
    return build_method(resolve(config("method.name=vicreg")).method, ModelConfig(backbone="resnet8"), 8).train()


def test_three_layers_no_teacher_and_a_float32_loss_of_bfloat16_networks(method):
    assert method.teacher is None
    layers = [layer for layer in method.student.projector if isinstance(layer, torch.nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in layers] == [(32, method.width), (32, 32), (8, 32)]
    method.autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    loss, features, metrics = method(random_views(4, side=8), keys(torch.arange(4)))
    assert {value.dtype for value in (loss, *metrics.values())} == {torch.float32}
    assert features.shape == (8, method.width) and not any(value.requires_grad for value in metrics.values())
    loss.backward()
    assert all(weight.grad.abs().sum() > 0 for weight in method.student.parameters())


def test_training_lowers_the_loss_and_does_not_collapse(config, tmp_path):
    Trainer(config("method.name=vicreg", "optim.name=adamw", "optim.lr=0.03", "train.epochs=4")).fit()
    first, *_, last = measured(tmp_path / "run")
    assert last["loss"] < 0.9 * first["loss"]
    assert last["feature_std"] > 0.05 and "tau" not in last
    assert {"invariance", "variance", "covariance"} <= set(last)


def test_a_killed_run_ends_with_the_same_weights_bit_for_bit(config, tmp_path):
    assert_a_killed_run_ends_the_same(config, tmp_path, "method.name=vicreg")


@pytest.mark.ddp
def test_twenty_steps_of_two_processes_are_those_of_one(config, processes, tmp_path):
    common = ("method.name=vicreg", "optim.name=sgd", "optim.lr=0.003", "data.limit=720", "data.batch_size=36")
    common += ("train.epochs=1", "train.log_every=1", "optim.warmup_epochs=0")
    runs = {n: config(*common, f"run.dir={tmp_path / f'on-{n}'}") for n in (1, 2)}
    Trainer(runs[1]).fit()

    def fit(world):
        Trainer(runs[2], world=world).fit()

    processes(2, fit)
    one, two = (losses(tmp_path / f"on-{n}") for n in (1, 2))
    assert list(one) == list(range(1, 21)) and one[20] < one[1]
    assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.parametrize(
    ("override", "owner"),
    [("method.tau=0.9", "vssl or byol or moco_v3 or dino"), ("method.temperature=0.1", "vssl or moco_v3")],
)
def test_another_methods_keys_are_refused(config, override, owner):
    key = override.split("=")[0]
    with pytest.raises(UserError, match=f"{key} is an option of method.name={owner}, not of vicreg"):
        config("method.name=vicreg", override)


@pytest.mark.parametrize("name", ["demo", "cifar10_fast", "cifar100_fast", "in100_fast", "folder"])
def test_every_null_is_filled_in(name):
    resolved = resolve(load_config(f"configs/{name}.yaml", ["method.name=vicreg", "optim.name=null", "optim.lr=null"]))
    assert None not in vars(resolved.method).values()
    assert (resolved.optim.name, resolved.optim.lr) == ("lars", 0.3)
