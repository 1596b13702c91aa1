"""What every optimizer does: torch's formulas, masked steps, weights without a gradient, state, weight decay."""

import copy
import math

import pytest
import torch
from torch import nn

from pipelines.errors import UserError
from support.optim import gradients, make, network
from support.training import lines
from vssl.engine.config import load_config, resolve
from vssl.engine.trainer import Trainer
from vssl.methods import METHODS, find_method
from vssl.optim import OPTIMIZERS, find_optimizer, load_optimizer, set_learning_rate, set_weight_decay

NAMES = list(OPTIMIZERS)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("scheduled", [False, True])
def test_fused_optimizers_equal_torchs_plain_ones(name, scheduled):
    """With a schedule the decay is a tensor, here one that does not change."""
    ours, theirs = network(), network()
    plain = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name]
    extra = {"momentum": 0.9} if name == "sgd" else {}
    decayed = [w for w in theirs.parameters() if w.ndim > 1]
    rest = [w for w in theirs.parameters() if w.ndim <= 1]
    reference = plain([{"params": decayed}, {"params": rest, "weight_decay": 0}], 0.1, weight_decay=0.2, **extra)
    optimizer = make(ours, name, weight_decay=0.2, final_weight_decay=0.2 if scheduled else None)
    for step in range(3):
        gradients(ours, step)
        gradients(theirs, step)
        optimizer.step()
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_scheduled_weight_decay_is_the_one_that_was_written(name):
    fixed, scheduled = network(), network()
    first = make(fixed, name, weight_decay=0.3)
    second = make(scheduled, name, weight_decay=0.0, final_weight_decay=1.0)
    set_weight_decay(second, 0.3)
    for step in range(3):
        for model, optimizer in ((fixed, first), (scheduled, second)):
            gradients(model, step)
            optimizer.step()
    for a, b in zip(fixed.parameters(), scheduled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def state_of(optimizer):
    """All tensors of the optimizer's state."""
    values = [value for states in optimizer.state_dict()["state"].values() for value in states.values()]
    return [value.clone() for value in values if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("final", [None, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_a_bad_step_changes_neither_weights_nor_state(name, final):
    model, twin = network(), network()
    optimizers = [make(m, name, final_weight_decay=final) for m in (model, twin)]
    for step in range(4):
        for m, optimizer in zip((model, twin), optimizers, strict=True):
            if step in (0, 2) and m is twin:
                continue  # the reference skips the bad steps
            gradients(m, step, scale=math.nan if step in (0, 2) else 1.0)
            optimizer.found_inf = torch.tensor(float(step in (0, 2)))
            optimizer.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(*map(state_of, optimizers), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("final", [None, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_weights_without_a_gradient_stay_as_they_are(name, final):
    model = network()
    optimizer = make(model, name, final_weight_decay=final)
    for step in range(2):
        before = [w.detach().clone() for w in model.parameters()]
        gradients(model, step)
        without = list(model[0].parameters())
        for weight in without:
            weight.grad = None
        optimizer.found_inf = torch.tensor(0.0)
        optimizer.step()
        for weight, old in zip(model.parameters(), before, strict=True):
            assert torch.equal(weight, old) == any(weight is one for one in without)
    for weight in model.parameters():
        weight.grad = None
    optimizer.step()


@pytest.mark.parametrize("options", [{}, {"final_weight_decay": 0.5}])
@pytest.mark.parametrize("name", NAMES)
def test_state_continues_exactly(name, options):
    model = network()
    optimizer = make(model, name, **options)
    gradients(model, 0)
    optimizer.step()
    twin = network()
    twin.load_state_dict(model.state_dict())
    restored = make(twin, name, **options)
    load_optimizer(restored, copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (twin, restored)):
        set_learning_rate(o, 0.05)
        set_weight_decay(o, 0.2)
        gradients(m, 1)
        o.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_state_changes_nothing_that_the_config_says(name):
    optimizer, other = make(network(), name, lr=0.3), make(network(), name, lr=0.1, weight_decay=0.7)
    own = [(group["lr"], group["decay"], group["kind"], group["params"]) for group in optimizer.param_groups]
    load_optimizer(optimizer, copy.deepcopy(other.state_dict()))
    for group, (lr, decay, kind, params) in zip(optimizer.param_groups, own, strict=True):
        assert group["lr"] is lr and (group["decay"], group["kind"]) == (decay, kind)
        assert all(a is b for a, b in zip(group["params"], params, strict=True))
        assert group.get("weight_decay", 0.0) in (0.0, 0.1)


def test_a_state_of_other_groups_is_one_clear_line():
    old = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]}, {"params": []}], 0.1)
    with pytest.raises(UserError, match=r"other groups of weights .*: start a new run with model\.weights=CHECKPOINT"):
        load_optimizer(make(network(), "sgd"), old.state_dict())


# Defaults


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", METHODS)
def test_an_optimizer_alone_gets_its_own_defaults_unless_it_is_the_recipes(method, name):
    keys = ["optim.lr=null", "optim.weight_decay=null", f"method.name={method}"]
    for size in (32, 224):
        config = resolve(load_config("configs/demo.yaml", [*keys, f"optim.name={name}", f"data.image_size={size}"]))
        recipe = find_method(method).recipe(config.method, small_images=size <= 64)
        options = find_optimizer(name).Options
        expected = options.default_lr, options.default_weight_decay
        if recipe.optimizer == name:
            expected = recipe.lr, recipe.weight_decay
        assert (config.optim.lr, config.optim.weight_decay) == expected
        assert isinstance(config.optim, options)
    chosen = resolve(load_config("configs/demo.yaml", [*keys, "optim.name=null"])).optim
    assert (chosen.name, chosen.lr, chosen.weight_decay) == (recipe.optimizer, *_recipe_rates(method))


def _recipe_rates(method):
    config = load_config("configs/demo.yaml", [f"method.name={method}"])
    recipe = find_method(method).recipe(config.method, small_images=True)
    return recipe.lr, recipe.weight_decay


@pytest.mark.parametrize("name", NAMES)
def test_one_given_value_leaves_the_other_to_the_optimizer(name):
    config = resolve(load_config("configs/folder.yaml", [f"optim.name={name}", "optim.lr=0.7"]))
    alone = resolve(load_config("configs/folder.yaml", [f"optim.name={name}"]))
    assert config.optim.lr == 0.7 and config.optim.weight_decay == alone.optim.weight_decay


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", METHODS)
def test_method_and_optimizer_alone_are_a_sound_run(digits, tmp_path, method, name):
    """50 steps on the digits. DINO's loss first rises with the entropy of its targets: there the divergence falls."""
    keys = [f"method.name={method}", f"optim.name={name}", "optim.weight_decay=null", f"data.dir={digits}"]
    small = [f"run.dir={tmp_path}", "train.epochs=5", "train.log_every=1", "eval.every=0", "train.device=cpu"]
    Trainer(load_config("configs/demo.yaml", [*keys, *small, "train.compile=false"])).fit()
    falling = [line["kl" if method == "dino" else "loss"] for line in lines(tmp_path) if "loss" in line]
    assert len(falling) == 55 and sum(falling[-10:]) < 0.97 * sum(falling[:10])


# An optimizer of one's own


OWN = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from pipelines.options import option
from vssl.optim.base import OptimOptions, good, trained

@dataclass(frozen=True)
class Options(OptimOptions):
    default_lr: ClassVar[float] = 0.01
    default_weight_decay: ClassVar[float] = 0.0
    power: float = option(1.0, "exponent", low=0.0)

class Powered(torch.optim.Optimizer):
    Options = Options
    def __init__(self, groups, options):
        super().__init__(groups, {})
        self.power = options.power
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for w in trained(group):
                w.sub_(torch.nan_to_num(w.grad.sign() * w.grad.abs() ** self.power) * group["lr"] * good(self))

class NoOptions(torch.optim.SGD): ...
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "powered.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "optim.name=powered:Powered"


def test_an_optimizer_outside_the_package_trains_and_resumes(own, config, tmp_path):
    keys = (own, "optim.power=0.5", "optim.lr=null", "train.epochs=1")
    trainer = Trainer(config(*keys))
    assert (trainer.config.optim.lr, trainer.config.optim.power) == (0.01, 0.5)
    trainer.fit()
    trainer.directory.close()
    assert Trainer(load_config(tmp_path / "run" / "config.yaml"), resume="auto").step == 10


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            ["optim.momentum=0.5"],
            "optim.momentum is an option of optim.name=lars or sgd or muon, not of powered:Powered",
        ),
        (["optim.power=-1"], "optim.power must be at least 0.0, not -1.0"),
        (["optim.name=adamw", "optim.power=1"], "unknown config key 'optim.power'"),
        (["optim.name=powered:Missing"], "optim.name=powered:Missing: powered has no Missing"),
        (
            ["optim.name=missing:Powered"],
            "optim.name=missing:Powered: there is no module missing, neither in the current directory nor installed",
        ),
        (["optim.name=powered:NoOptions"], "optim.name=powered:NoOptions has no Options of the kind of"),
        (
            ["optim.name=powered"],
            "optim.name must be lars or sgd or adamw or muon or package.module:NAME, not 'powered'",
        ),
    ],
)
def test_what_is_wrong_with_an_own_optimizer_is_one_line(own, keys, message):
    with pytest.raises(UserError) as error:
        load_config("configs/demo.yaml", [own, *keys])
    assert message in str(error.value)
