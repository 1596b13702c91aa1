"""The promises that every registered method makes to the engine."""

import copy

import pytest
import torch
from torch import nn

from pipelines.errors import UserError
from vssl.config import from_dict
from vssl.engine.config import Config, resolve
from vssl.methods import METHODS, build_method, find_method
from vssl.methods.base import swap_views

B = 8


def build(name, **options):
    torch.manual_seed(0)
    small = {"name": name, "projector_hidden": 32, "latent": 8, **options}
    config = resolve(from_dict({"method": small, "model": {"backbone": "resnet8"}}, Config))
    return build_method(config.method, config.model, 32).train()


def run(method, views=None):
    views = torch.randn(2 * B, 3, 32, 32, generator=torch.Generator().manual_seed(1)) if views is None else views
    return method(views, torch.arange(B), torch.tensor(0))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_a_loss_features_of_both_views_and_detached_scalars(name):
    loss, features, metrics = run(build(name))
    assert loss.shape == () and loss.dtype == torch.float32 and loss.requires_grad
    assert features.shape == (2 * B, 64)
    assert metrics and all(value.shape == () and not value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("name", METHODS)
def test_each_layer_runs_once_per_step_for_both_views(name):
    """Half the kernels, and with several processes half the exchanges, of running each view alone."""
    method, calls = build(name), []
    for part in method.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.register_forward_hook(lambda part, inputs, output: calls.append((part, len(output))))
    run(method)
    layers = [part for part in method.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    assert len(calls) == len({part for part, _ in calls}) and {rows for _, rows in calls} == {2 * B}
    # DINO's prototypes are used without their layer's own forward pass.
    assert len(calls) >= len(layers) - 2


@pytest.mark.parametrize("name", METHODS)
def test_every_weight_except_a_teachers_learns(name):
    method = build(name)
    run(method).loss.backward()
    learned = {key for key, weight in method.named_parameters() if weight.grad is not None}
    assert learned == {key for key, _ in method.named_parameters() if not key.startswith("teacher.")}
    assert all(not weight.requires_grad for key, weight in method.named_parameters() if key.startswith("teacher."))


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_state_alone_decides_its_outputs(name):
    method = build(name)
    run(method).loss.backward()
    method.after_update(torch.tensor(0.5))
    twin = build(name)
    twin.load_state_dict(copy.deepcopy(method.state_dict()))
    assert torch.equal(run(method).loss, run(twin).loss)


@pytest.mark.parametrize("name", METHODS)
def test_a_teacher_follows_at_the_given_rate_and_rate_zero_changes_nothing(name):
    method = build(name)
    if method.teacher is None:
        return
    run(method)  # moves the student's running statistics
    with torch.no_grad():
        for weight in method.student.parameters():
            weight += 1.0
    before = copy.deepcopy(method.teacher.state_dict())
    method.after_update(torch.tensor(0.0))
    assert all(torch.equal(before[key], value) for key, value in method.teacher.state_dict().items())
    method.after_update(torch.tensor(0.25))
    student = method.student.state_dict()
    for key, value in method.teacher.state_dict().items():
        if value.is_floating_point():
            expected = 0.75 * before[key] + 0.25 * student[key.removeprefix("network.")]
            torch.testing.assert_close(value, expected, msg=key)


@pytest.mark.parametrize("name", METHODS)
def test_what_forward_changes_is_guarded(name):
    """The engine puts the guarded buffers back after a bad step: no other floating-point state may move."""
    method = build(name)
    guarded = {buffer.data_ptr() for buffer in method.guarded_buffers()}
    before = copy.deepcopy(method.state_dict())
    run(method)
    moved = {
        key
        for key, value in method.state_dict().items()
        if value.is_floating_point() and not torch.equal(value, before[key])
    }
    assert moved and all(method.state_dict()[key].data_ptr() in guarded for key in moved)
    assert not any(key.startswith("teacher.") for key in moved)


@pytest.mark.parametrize("name", METHODS)
def test_each_view_has_its_own_batch_statistics(name):
    """The features of a view do not depend on what the other view shows."""
    views = torch.randn(2 * B, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    other = torch.cat([views[:B], 5 + 3 * views[B:]])
    torch.testing.assert_close(run(build(name), views).features[:B], run(build(name), other).features[:B])


def test_heads_are_the_published_ones():
    def linear(module):
        return [part for part in module.modules() if isinstance(part, nn.Linear)]

    byol, moco = build("byol"), build("moco_v3")
    assert all(part.bias is not None for part in linear(byol))
    assert all(part.bias is None for part in linear(moco))
    assert not moco.student.projector[-1].affine and moco.predictor[-1] is linear(moco.predictor)[-1]


@pytest.mark.parametrize("name", ["vssl", "byol", "moco_v3"])
def test_without_a_predictor_there_are_only_the_encoders_weights(name):
    method = build(name, predictor=False)
    assert isinstance(method.predictor, nn.Identity)
    assert torch.isfinite(run(method).loss)


def test_swapping_views_gives_the_other_view():
    rows = torch.arange(6)[:, None]
    assert swap_views(rows).flatten().tolist() == [3, 4, 5, 0, 1, 2]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "vssl"])
def test_a_method_without_a_variance_says_so(name):
    method = build(name)
    with pytest.raises(UserError, match=f"method.name={name} has no variance"):
        method.posterior(torch.zeros(2, 64))
    with pytest.raises(UserError, match=f"method.name={name} has no variance"):
        method.predict(torch.zeros(4, 3, 32, 32))


@pytest.mark.parametrize("small_images", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_fills_in_every_null(name, small_images):
    config = resolve(from_dict({"method": {"name": name}, "data": {"image_size": 32 if small_images else 224}}, Config))
    assert None not in vars(config.method).values()
    assert None not in (config.optim.name, config.optim.lr, config.optim.weight_decay)
    assert isinstance(config.method, find_method(name).Options) and config.method.name == name
