"""Optimizers against by-hand references, masked steps, schedules."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from pipelines.errors import UserError
from vssl.engine.config import resolve
from vssl.methods import METHODS, build_method
from vssl.models.backbones import build_backbone
from vssl.models.config import ModelConfig
from vssl.optim import LARS, Schedule, build_optimizer, load_optimizer, set_learning_rate


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def gradients(model, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.grad = scale * torch.randn(weight.shape, generator=generator)


def reference_lars(weight, grad, buffer, lr, momentum, decay, eta, adapt):
    if adapt:
        norm, grad_norm = weight.norm(), grad.norm()
        local = eta * norm / (grad_norm + decay * norm) if norm > 0 and grad_norm > 0 else lr
        grad = (grad + decay * weight) * min(float(local) / lr, 1.0)
    buffer = momentum * buffer + grad
    return weight - lr * buffer, buffer


@pytest.mark.parametrize("lr", [0.01, 2.0])  # the local rate is clipped at the first, not at the second
def test_lars_is_the_papers_formula(lr):
    model = network()
    optimizer = build_optimizer([model], "lars", torch.tensor(lr), weight_decay=0.1, momentum=0.9, eta=0.02)
    expected = {n: (w.detach().clone(), torch.zeros_like(w)) for n, w in model.named_parameters()}
    for step in range(3):
        gradients(model, step)
        for name, weight in model.named_parameters():
            old, buffer = expected[name]
            expected[name] = reference_lars(old, weight.grad, buffer, lr, 0.9, 0.1, 0.02, adapt=weight.ndim > 1)
        optimizer.step()
        for name, weight in model.named_parameters():
            torch.testing.assert_close(weight.detach(), expected[name][0], msg=name)


def test_lars_takes_plain_steps_from_a_weight_of_zero():
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = LARS([{"params": [weight]}], torch.tensor(0.5), 0.9, 0.0, 0.02)
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), -0.5))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_optimizers_equal_torchs_plain_ones(name):
    ours, theirs = network(), network()
    plain = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name]
    extra = {"momentum": 0.9} if name == "sgd" else {}
    decayed = [w for w in theirs.parameters() if w.ndim > 1]
    rest = [w for w in theirs.parameters() if w.ndim <= 1]
    reference = plain([{"params": decayed}, {"params": rest, "weight_decay": 0}], 0.1, weight_decay=0.2, **extra)
    optimizer = build_optimizer([ours], name, torch.tensor(0.1), weight_decay=0.2, momentum=0.9, eta=0.0)
    for step in range(3):
        gradients(ours, step)
        gradients(theirs, step)
        optimizer.step()
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_a_bad_step_changes_neither_weights_nor_state(name):
    model, twin = network(), network()
    optimizers = [
        build_optimizer([m], name, torch.tensor(0.1), weight_decay=0.1, momentum=0.9, eta=0.02) for m in (model, twin)
    ]
    for step in range(4):
        for m, optimizer in zip((model, twin), optimizers, strict=True):
            if step == 2 and m is twin:
                continue  # the reference skips the bad step
            gradients(m, step, scale=math.nan if step == 2 else 1.0)
            optimizer.found_inf = torch.tensor(float(step == 2))
            optimizer.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_state_continues_exactly(name):
    def fresh(model):
        return build_optimizer([model], name, torch.tensor(0.1), weight_decay=0.1, momentum=0.9, eta=0.02)

    model = network()
    optimizer = fresh(model)
    gradients(model, 0)
    optimizer.step()
    twin = network()
    twin.load_state_dict(model.state_dict())
    restored = fresh(twin)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (twin, restored)):
        set_learning_rate(o, 0.05)
        gradients(m, 1)
        o.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_biases_and_norms_are_neither_decayed_nor_adapted():
    model = network()
    optimizer = build_optimizer([model], "lars", torch.tensor(0.1), weight_decay=0.1, momentum=0.9, eta=0.02)
    decayed, plain = optimizer.param_groups
    assert {w.ndim for w in decayed["params"]} == {2} and decayed["adapt"]
    assert {w.ndim for w in plain["params"]} == {1} and not plain["adapt"]


def assert_grouped(module, plain):
    """The weights without decay are those named ``plain``; within both groups they keep the module's order."""
    named = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    groups = build_optimizer([module], "sgd", torch.tensor(0.1), 0.1, 0.9, 0.0).param_groups
    expected = [weight for name, weight in named.items() if name not in plain], [named[name] for name in plain]
    for group, weights in zip(groups, expected, strict=True):
        assert [id(weight) for weight in group["params"]] == [id(weight) for weight in weights]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def vectors(module):
    """The names of all trained weights of one dimension."""
    return [name for name, weight in module.named_parameters() if weight.requires_grad and weight.ndim <= 1]


@pytest.mark.parametrize("method", METHODS)
def test_groups_of_a_method_with_a_resnet_go_by_dimensions_alone(config, method):
    """The optimizer's state in a checkpoint depends on the order."""
    settings = resolve(config(f"method.name={method}"))
    module = build_method(settings.method, settings.model, 8)
    assert_grouped(module, vectors(module))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "timm:resnet26d", "timm:test_convnext"])
def test_groups_of_convolutional_networks_go_by_dimensions_alone(name):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    module, _ = build_backbone(ModelConfig(backbone=name), 64)
    assert_grouped(module, vectors(module))


@pytest.mark.parametrize(("name", "more"), [("test_vit", "cls_token"), ("test_vit2", "reg_token")])
def test_tokens_and_position_embeddings_do_not_decay(name, more):
    pytest.importorskip("timm")
    backbone, _ = build_backbone(ModelConfig(backbone=f"timm:{name}"), 32)
    module = nn.ModuleDict({"encoder": backbone})
    plain = {*vectors(module), "encoder.pos_embed", f"encoder.{more}"}
    assert_grouped(module, [key for key, _ in module.named_parameters() if key in plain])


class Odd(nn.Module):
    """Weights of several dimensions that do not decay, and some that do."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(4, 1, 1))
        self.attention = nn.MultiheadAttention(4, 1)
        self.norm = nn.LayerNorm([3, 4])
        self.table = nn.Linear(4, 4)
        self.embed = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))

    def no_weight_decay(self):
        return {"table.weight", "embed.0.*"}


def test_groups_go_by_the_kind_of_weight_and_by_what_the_network_excludes():
    module = nn.Sequential(Odd())
    groups = build_optimizer([module], "sgd", torch.tensor(0.1), 0.1, 0.9, 0.0).param_groups
    decayed = {id(weight) for weight in groups[0]["params"]}
    assert {name for name, weight in module.named_parameters() if id(weight) in decayed} == {
        "0.attention.in_proj_weight",
        "0.attention.out_proj.weight",
        "0.embed.1.parametrizations.weight.original0",
        "0.embed.1.parametrizations.weight.original1",
    }


def test_a_state_of_other_groups_is_one_clear_line():
    old = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]}, {"params": []}], 0.1)
    optimizer = build_optimizer([network()], "sgd", torch.tensor(0.1), 0.1, 0.9, 0.0)
    with pytest.raises(UserError, match=r"other groups of weights .*: start a new run with model\.weights=CHECKPOINT"):
        load_optimizer(optimizer, old.state_dict())


def test_warm_up_rises_linearly_then_the_cosine_falls_to_zero():
    schedule = Schedule(lr=2.0, steps=100, warmup_steps=10)
    rates = [schedule.learning_rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)
    assert all(a > b for a, b in itertools.pairwise(rates[10:])) and 0 < rates[-1] < 0.01


def test_without_warm_up_the_first_rate_is_the_peak():
    assert Schedule(lr=2.0, steps=5, warmup_steps=0).learning_rate(0) == 2.0
