"""Dropout and drop path depend on seed, epoch, image, view and layer alone; what cannot be made so is refused."""

import copy

import pytest
import torch
from torch import nn

from pipelines.errors import UserError
from pipelines.rng import named_uniform
from support.networks import Dropping
from support.training import assert_a_killed_run_ends_the_same, losses, small_config
from support.views import keys, random_views
from vssl.engine.build import initial_method
from vssl.engine.config import resolve
from vssl.engine.trainer import Trainer
from vssl.methods.base import Method
from vssl.models.backbones import build_backbone
from vssl.models.config import ModelConfig
from vssl.models.random_layers import adopt_random_layers, check_repeatable, draw_of

B = 4
DROPPING = "model.backbone=support.networks:Dropping"


def method_of(digits, tmp_path, *overrides) -> Method:
    return initial_method(resolve(small_config(digits, tmp_path / "run", *overrides))).train()


@pytest.fixture
def method(digits, tmp_path):
    return method_of(digits, tmp_path, DROPPING)


def test_numbers_depend_on_the_image_and_the_view_alone():
    views, index = torch.tensor([0, 1, 500]), torch.tensor([7, 3, 9])
    numbers = named_uniform(1, 2, index, views, "layer a", 100).view(3, 3, 100)
    alone = named_uniform(1, torch.tensor(2), index[1:2], views[2:], "layer a", 100)
    assert torch.equal(numbers[2, 1], alone[0])
    assert numbers.flatten().unique().numel() == 900
    others = [named_uniform(*key, index, views, name, 100) for key, name in (((2, 2), "layer a"), ((1, 2), "layer b"))]
    assert not any((numbers.flatten() == other.flatten()).any() for other in others)
    assert abs(numbers.mean().item() - 0.5) < 0.03


def test_equal_keys_give_equal_features_whatever_the_batch(method):
    views, index = random_views(B, side=8), torch.arange(B)
    backbone = method.student.backbone

    def features(rows, index, epoch=0):
        batch = views._replace(full=views.full[rows])
        method.expect(batch, keys(index, epoch))
        return backbone(batch.full)

    whole = features(torch.arange(2 * B), index)
    assert torch.equal(whole, features(torch.arange(2 * B), index))
    part = torch.tensor([2, 0])
    torch.testing.assert_close(features(torch.cat([part, part + B]), part), whole.view(2, B, -1)[:, part].flatten(0, 1))
    assert (features(torch.arange(2 * B), index, 1) != whole).any()


@pytest.mark.parametrize("local", [2, 3])
def test_each_view_has_zeros_of_its_own(method, local):
    views = random_views(B, local=local, side=8, local_side=6)
    method.expect(views, keys(torch.arange(B), local=local))
    zeros = []
    method.student.backbone.elements.register_forward_hook(lambda _, arguments, y: zeros.append(y / arguments[0] == 0))
    for group in views:
        method.student.backbone(group)
    of_view = torch.cat(zeros).view(2 + local, -1)
    assert len({tuple(row.tolist()) for row in of_view}) == 2 + local


def test_the_teacher_and_evaluation_drop_nothing(method):
    views = random_views(B, side=8)
    method.expect(views, keys(torch.arange(B)))
    plain = Dropping(rate=0.0)
    plain.load_state_dict(method.student.backbone.state_dict())
    torch.testing.assert_close(method.teacher.network.backbone(views.full), plain(views.full))
    student = copy.deepcopy(method.student.backbone)
    torch.testing.assert_close(student.eval()(views.full), plain(views.full))
    assert (method.student.backbone(views.full) - plain(views.full)).abs().max() > 0.01


@pytest.mark.parametrize("layer", [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d])
def test_the_share_scale_and_shape_of_zeros_are_those_of_torch(layer):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer(0.25)

        def forward(self, x):
            return self.layer(x)

    network = Network()
    adopt_random_layers(network)
    x = torch.ones(200, 40, *[3] * {nn.Dropout1d: 1, nn.Dropout3d: 3}.get(layer, 2))
    key = torch.tensor(0)
    draw_of(network).expect([x], key, key, torch.arange(100), torch.arange(2))
    y = network(x)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert abs((y == 0).float().mean().item() - 0.25) < 0.02
    constant = (y.flatten(2) == y.flatten(2)[:, :, :1]).all()
    assert constant == (layer is not nn.Dropout)


def test_random_layers_of_timm_are_converted_its_fused_attention_too():
    pytest.importorskip("timm")
    rates = {"drop_path_rate": 0.2, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1}
    backbone, _ = build_backbone(ModelConfig(backbone="timm:test_vit", options=rates), 160)
    check_repeatable(backbone, "timm:test_vit", 160)
    assert draw_of(backbone) is not None
    backbone, _ = build_backbone(ModelConfig(backbone="timm:test_vit"), 160)
    assert draw_of(backbone) is None


@pytest.mark.parametrize(
    ("network", "named"),
    [
        ("FunctionalDropout", "FunctionalDropout draws random numbers"),
        ("OtherOrder", "do not keep the order of images"),
    ],
)
def test_a_network_that_cannot_be_repeated_is_refused_by_its_name(digits, tmp_path, network, named):
    with pytest.raises(UserError, match=f"support.networks:{network}: .*{named}"):
        method_of(digits, tmp_path, f"model.backbone=support.networks:{network}")


def test_a_random_layer_of_timm_that_is_not_known_is_refused_by_its_name(digits, tmp_path):
    pytest.importorskip("timm")
    keys = ("model.backbone=timm:test_vit", "data.image_size=32", "model.options={patch_drop_rate: 0.5}")
    with pytest.raises(UserError, match="PatchDropout at patch_drop"):
        method_of(digits, tmp_path, *keys)


def test_the_trial_changes_nothing():
    backbone, _ = build_backbone(ModelConfig(backbone="support.networks:Dropping"), 8)
    before, state = copy.deepcopy(backbone.state_dict()), torch.get_rng_state()
    check_repeatable(backbone, "Dropping", 8)
    assert torch.equal(state, torch.get_rng_state()) and not draw_of(backbone).ready
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert all(part.training for part in backbone.modules())


def test_a_killed_run_of_a_network_with_random_layers_ends_the_same(digits, tmp_path):
    def config(*overrides):
        return small_config(
            digits, tmp_path / "run", DROPPING, "augment.local_views=1", "augment.local_size=6", *overrides
        )

    whole, _ = assert_a_killed_run_ends_the_same(config, tmp_path)
    assert draw_of(whole.train_step.method.student.backbone).ready


@pytest.mark.slow
def test_a_compiled_step_draws_the_same_numbers(digits, tmp_path):
    def trained(name, compiled):
        config = small_config(
            digits,
            tmp_path / name,
            DROPPING,
            "augment.local_views=2",
            "augment.local_size=6",
            "train.epochs=1",
            "data.limit=80",
            "data.drop_last=false",
            "train.log_every=1",
            f"train.compile={compiled}",
        )
        trainer = Trainer(config)
        trainer.fit()
        assert trainer.train_step.compiled == (compiled == "true")
        return losses(tmp_path / name)

    assert trained("compiled", "true") == pytest.approx(trained("eager", "false"), rel=1e-4)
