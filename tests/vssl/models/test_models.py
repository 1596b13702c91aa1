"""Backbones keep torchvision's keys, heads their scale and bounds; a teacher changes only by following its student."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from pipelines.errors import UserError
from vssl.engine.build import initial_method
from vssl.engine.config import resolve
from vssl.models.backbones import build_backbone
from vssl.models.config import ModelConfig
from vssl.models.ema import Teacher, scale_tau, tau_at
from vssl.models.encoder import Encoder
from vssl.models.heads import GaussianHead, bounded
from vssl.models.norm import adopt_norms, separate_views, synchronise_statistics


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_backbone_loads_strictly_into_torchvision_and_timm(name):
    backbone, width = build_backbone(ModelConfig(backbone=name, stem="imagenet"), 224)
    reference = getattr(torchvision.models, name)(weights=None)
    assert width == reference.fc.in_features
    reference.fc = nn.Identity()
    reference.load_state_dict(backbone.state_dict(), strict=True)
    timm = pytest.importorskip("timm")
    timm.create_model(name, num_classes=0).load_state_dict(backbone.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(backbone.eval()(images), reference.eval()(images))


def test_cifar_stem_keeps_keys_and_resolution():
    small, _ = build_backbone(ModelConfig(backbone="resnet18", stem="auto"), 32)
    large, _ = build_backbone(ModelConfig(backbone="resnet18", stem="auto"), 224)
    assert list(small.state_dict()) == list(large.state_dict())
    assert small.conv1.weight.shape == (64, 3, 3, 3) and small.conv1.padding == (1, 1)
    assert isinstance(small.maxpool, nn.Identity) and not isinstance(large.maxpool, nn.Identity)


@pytest.mark.parametrize("size", [(32, 32), (62, 96)])
def test_the_stem_on_blocks_of_pixels_is_the_same_convolution(size):
    backbone, _ = build_backbone(ModelConfig(backbone="resnet18", stem="imagenet"), 224)
    stem, images = backbone.conv1.double(), torch.randn(2, 3, *size, dtype=torch.float64)
    plain, on_blocks = stem(images), stem.on_blocks(images, stem.weight)
    torch.testing.assert_close(on_blocks, plain)
    gradients = [torch.autograd.grad(y.square().sum(), stem.weight)[0] for y in (plain, on_blocks)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("synchronised", [False, True])
def test_normalising_after_the_pooling_changes_no_value_gradient_or_statistic(synchronised, monkeypatch):
    monkeypatch.setattr("vssl.models.norm.gather_equal", lambda rows: torch.cat([rows, rows]))
    torch.manual_seed(0)
    eager, _ = build_backbone(ModelConfig(backbone="resnet18", stem="imagenet"), 224)
    eager.layer1 = eager.layer2 = eager.layer3 = eager.layer4 = eager.avgpool = nn.Identity()
    nn.init.normal_(eager.bn1.weight)  # where it is negative, the smallest value becomes the largest
    nn.init.normal_(eager.bn1.bias)
    separate_views(eager, 2)  # of two images each
    if synchronised:
        synchronise_statistics(eager)
    network = copy.deepcopy(eager)
    network.maxpool = None  # not reached
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    images, others = torch.randn(4, 3, 40, 42), torch.randn(4, 64 * 10 * 11)
    images[2:] = 1 + 2 * images[2:]
    outputs = [part.train()(images) for part in (eager, compiled)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        (output * others).sum().backward()
    for name in ("conv1.weight", "bn1.weight", "bn1.bias"):
        gradients = [part.get_parameter(name).grad for part in (eager, network)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6 * gradients[0].abs().max().item())
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(*(getattr(part.bn1, name) for part in (eager, network)))


@pytest.mark.gpu
@pytest.mark.parametrize("side", [64, 65])
def test_the_stem_on_a_gpu_is_that_on_a_cpu(cuda, side):
    backbone, _ = build_backbone(ModelConfig(backbone="resnet18", stem="imagenet"), 224)
    stem, images = backbone.conv1.double(), torch.randn(2, 3, side, side, dtype=torch.float64)
    expected = stem(images)
    found = stem.to(cuda)(images.to(cuda).contiguous(memory_format=torch.channels_last))
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.cpu(), expected)


def test_resnet8_is_small():
    backbone, width = build_backbone(ModelConfig(backbone="resnet8", stem="auto"), 32)
    assert backbone(torch.randn(2, 3, 32, 32)).shape == (2, width)
    assert sum(w.numel() for w in backbone.parameters()) < 100_000


def test_gaussian_head_standardises_means_and_bounds_variances():
    head = GaussianHead(16, 32, 8, bound=2.0).train()
    mean, logvar = head(100 * torch.randn(256, 16))
    torch.testing.assert_close(mean.mean(dim=0), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(mean.std(dim=0, unbiased=False), torch.ones(8), atol=1e-3, rtol=0)
    assert logvar.abs().max() <= 2.0
    torch.testing.assert_close(bounded(torch.tensor([-100.0, 0.01, 100.0]), 2.0), torch.tensor([-2.0, 0.01, 2.0]))


def encoder():
    torch.manual_seed(0)
    backbone, width = build_backbone(ModelConfig(backbone="resnet8"), 32)
    return Encoder(backbone, GaussianHead(width, 32, 8, bound=2.0)).train()


def test_teacher_normalises_with_the_batch_and_leaves_its_buffers_alone():
    student = encoder()
    teacher = Teacher(student).train()
    before = copy.deepcopy(teacher.state_dict())
    images = 3 + torch.randn(16, 3, 32, 32)
    torch.testing.assert_close(teacher(images)[1].mean, student(images)[1].mean)
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert not any(weight.requires_grad for weight in teacher.parameters())


def test_teacher_evaluates_with_its_running_statistics():
    teacher = Teacher(encoder()).eval()
    alone, beside = torch.randn(1, 3, 32, 32), 9 * torch.randn(7, 3, 32, 32)
    torch.testing.assert_close(teacher(alone)[0][0], teacher(torch.cat([alone, beside]))[0][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "expected"), [(64, 0.99), (256, 0.99), (512, 0.99**2), (1024, 0.99**4), (4096, 0.99**16)]
)
def test_tau_forgets_as_much_per_image_in_large_batches(batch, expected):
    assert scale_tau(0.99, batch) == pytest.approx(expected)


def test_teacher_update_keeps_the_tensors():
    student = encoder()
    teacher = Teacher(student)
    pointers = [value.data_ptr() for value in teacher.state_dict().values()]
    teacher.update(student, torch.tensor(0.5))
    assert pointers == [value.data_ptr() for value in teacher.state_dict().values()]


def test_tau_rises_to_one():
    assert tau_at(0, start=0.9, steps=100) == pytest.approx(0.9)
    assert tau_at(50, start=0.9, steps=100) == pytest.approx(0.95)
    assert tau_at(100, start=0.9, steps=100) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["timm:resnet26d", "timm:resnet18", "timm:mobilenetv3_small_050"])
def test_a_teacher_of_timms_network_changes_no_buffer(name):
    pytest.importorskip("timm")
    backbone, width = build_backbone(ModelConfig(backbone=name), 32)
    teacher = Teacher(backbone).train()
    before = copy.deepcopy(teacher.state_dict())
    images = torch.randn(4, 3, 64, 64)
    assert teacher(images).shape == (4, width)
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    backbone.train()(images)  # the student's buffers do change
    assert any(not torch.equal(before[f"network.{key}"], value) for key, value in backbone.state_dict().items())


def test_timms_norms_keep_their_results_and_keys():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    reference = timm.create_model("mobilenetv3_small_050", num_classes=0)
    ours = copy.deepcopy(reference)
    adopt_norms(ours)
    images = torch.randn(4, 3, 64, 64)
    for one, other in ((reference.train(), ours.train()), (reference.eval(), ours.eval())):
        torch.testing.assert_close(one(images), other(images))
    assert list(reference.state_dict()) == list(ours.state_dict())


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:mobilenetv3_small_050"])
def test_timms_norms_are_synchronised(name, monkeypatch):
    """With the peers' rows equal to this process's own, synchronised statistics are the plain ones."""
    pytest.importorskip("timm")
    monkeypatch.setattr("vssl.models.norm.gather_equal", lambda rows: torch.cat([rows, rows]))
    torch.manual_seed(0)
    plain, _ = build_backbone(ModelConfig(backbone=name), 32)
    shared = copy.deepcopy(plain)
    synchronise_statistics(shared)
    images = torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(plain.train()(images), shared.train()(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet8", "timm:resnet18", "timm:mobilenetv3_small_050"])
@pytest.mark.parametrize("synchronised", [False, True])
def test_both_views_at_once_are_normalised_as_if_each_came_alone(name, synchronised, monkeypatch):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    monkeypatch.setattr("vssl.models.norm.gather_equal", lambda rows: torch.cat([rows, rows]))
    torch.manual_seed(0)
    apart, width = build_backbone(ModelConfig(backbone=name), 32)
    if synchronised:
        synchronise_statistics(apart)
    joint = copy.deepcopy(apart)
    separate_views(joint, 8)
    # The second view is brighter: statistics over both would differ from those of each.
    first, second, weights = torch.randn(8, 3, 64, 64), 1.0 + 2.0 * torch.randn(8, 3, 64, 64), torch.randn(16, width)
    expected = torch.cat([apart.train()(first), apart(second)])
    found = joint.train()(torch.cat([first, second]))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    for out in (found, expected):
        (out * weights).sum().backward()
    largest = max(weight.grad.abs().max().item() for weight in apart.parameters())
    for one, other in zip(joint.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5 * largest)
    for one, other in zip(joint.buffers(), apart.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class OtherNorm(nn.BatchNorm2d):
    """A norm of an unknown library."""


@pytest.mark.parametrize(
    "norm",
    [
        OtherNorm(4),
        nn.SyncBatchNorm(4),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.BatchNorm2d(4, momentum=None),
    ],
)
def test_norms_that_would_be_neither_frozen_nor_synchronised_are_refused(norm):
    with pytest.raises(UserError, match=f"{type(norm).__name__} at 1: its running statistics"):
        adopt_norms(nn.Sequential(nn.Conv2d(3, 4, 1), norm))


def test_an_unknown_timm_network_names_the_nearest():
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"no network 'resnet81'; did you mean model\.backbone=timm:resnet18"):
        build_backbone(ModelConfig(backbone="timm:resnet81"), 32)


@pytest.mark.parametrize(("name", "side"), [("test_vit", 8), ("convnext_atto", 8)])
def test_an_image_too_small_for_a_network_is_one_clear_line(name, side):
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=f"timm:{name} does not take images of {side} pixels: "):
        build_backbone(ModelConfig(backbone=f"timm:{name}"), side)


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224"])
def test_transformers_take_views_of_several_sizes(name):
    pytest.importorskip("timm")
    backbone, width = build_backbone(ModelConfig(backbone=f"timm:{name}"), 64)
    assert [backbone(torch.zeros(2, 3, side, side)).shape for side in (64, 32)] == [(2, width)] * 2


def test_options_are_arguments_of_the_network():
    pytest.importorskip("timm")
    backbone, _ = build_backbone(ModelConfig("timm:test_vit", {"patch_size": 8, "drop_path_rate": 0.1}), 32)
    assert backbone.pos_embed.shape[1] == 1 + (32 // 8) ** 2
    assert backbone.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm:test_vit", {"patchsize": 8}, "unexpected keyword argument 'patchsize'"),
        ("timm:test_vit", {"embed_dim": 7}, "timm:test_vit cannot be built: dim should be divisible by num_heads"),
        ("timm:test_vit", {"pretrained": True}, "model.options: a backbone's pretrained cannot be set"),
        ("timm:test_vit", {"num_classes": 3}, "a backbone's num_classes cannot be set"),
        ("resnet8", {"zero_init": True}, "model.options are arguments of a timm network, which model.backbone=resnet8"),
    ],
)
def test_wrong_options_are_one_clear_line(name, options, message):
    pytest.importorskip("timm")
    with pytest.raises(UserError) as error:
        build_backbone(ModelConfig(name, options), 32)
    assert message in str(error.value)


def test_a_network_of_one_image_size_cannot_start_with_smaller_views(config):
    pytest.importorskip("timm")
    keys = ("model.backbone=timm:mixer_s32_224", "data.image_size=64", "train.first_size=32")
    with pytest.raises(UserError, match=r"does not take images of 32 pixels: Input height \(32\) doesn't match"):
        initial_method(resolve(config(*keys)))
