"""The promises that every registered method makes to the engine."""

import copy

import pytest
import torch
from torch import nn

from pipelines.batch import Views
from pipelines.errors import UserError
from support.views import keys, random_views
from vssl.config import from_dict
from vssl.engine.config import Config, resolve
from vssl.methods import METHODS, build_method, find_method
from vssl.methods.pairs import TWO_VIEWS, ViewCounts

B = 8


def build(name, counts=TWO_VIEWS, **options):
    torch.manual_seed(0)
    small = {"name": name, "projector_hidden": 32, "latent": 8, **options}
    config = resolve(from_dict({"method": small, "model": {"backbone": "resnet8"}}, Config))
    return build_method(config.method, config.model, 32, views=counts).train()


def run(method, views=None):
    """The output of a method that was built for these views."""
    counts = method.views
    views = views or random_views(B, counts.full, counts.local)
    return method(views, keys(torch.arange(B), full=counts.full, local=counts.local))


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
    views = random_views(B).full
    other = torch.cat([views[:B], 5 + 3 * views[B:]])
    one, same = (run(build(name), Views(pixels)).features[:B] for pixels in (views, other))
    torch.testing.assert_close(one, same)


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


MANY = ViewCounts(full=3, local=2, local_weight=0.5)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_any_number_of_views(name):
    method = build(name, MANY)
    loss, features, metrics = run(method)
    loss.backward()
    assert features.shape == (3 * B, 64) and torch.isfinite(loss)
    assert all(torch.isfinite(value) for value in metrics.values())
    learned = {key for key, weight in method.named_parameters() if weight.grad is not None}
    assert learned == {key for key, _ in method.named_parameters() if not key.startswith("teacher.")}


@pytest.mark.parametrize("name", METHODS)
def test_local_views_without_weight_change_no_loss(name):
    """Their pairs count nothing, and BatchNorm normalises every view by itself."""
    views = random_views(B, 2, 3)
    with_local, alone = build(name, ViewCounts(2, 3, 0.0)), build(name)
    alone.load_state_dict(with_local.state_dict(), strict=False)  # that of local views has a predictor more
    torch.testing.assert_close(run(with_local, views).loss, run(alone, Views(views.full)).loss)


@pytest.mark.parametrize("name", METHODS)
def test_equal_views_count_as_two_of_them(name):
    """The loss is a mean over pairs: further pairs with the same images change nothing."""
    views = random_views(B).full[:B]
    two, four = (run(build(name, ViewCounts(count)), Views(views.repeat(count, 1, 1, 1))).loss for count in (2, 4))
    torch.testing.assert_close(two, four, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vssl", "byol", "moco_v3"])
def test_each_kind_of_view_has_a_predictor_of_its_own(name):
    method = build(name, MANY, predictor=True)
    heads = [
        {key for key in method.state_dict() if key.startswith(kind)} for kind in ("predictor.", "local_predictor.")
    ]
    assert len(heads[0]) == len(heads[1]) > 0
    assert not any(key.startswith("local_predictor.") for key in build(name, predictor=True).state_dict())


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
