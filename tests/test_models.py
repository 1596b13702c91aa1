"""Backbones keep torchvision's keys, heads keep their promises, the teacher follows and never moves by itself."""

import copy

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from pipelines.errors import UserError
from vssl.models import ModelConfig, Teacher, build_backbone, build_student, load_backbone_weights, per_view
from vssl.models.heads import GaussianHead, bounded


def student(method="vssl", **settings):
    torch.manual_seed(0)
    config = ModelConfig(backbone="resnet8", projector_hidden=32, predictor_hidden=16, latent=8, **settings)
    return build_student(config, 32, method=method).train()


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_backbone_loads_strictly_into_torchvision_and_timm(name):
    backbone, width = build_backbone(name, "imagenet", 224)
    reference = getattr(torchvision.models, name)(weights=None)
    assert width == reference.fc.in_features
    reference.fc = nn.Identity()
    reference.load_state_dict(backbone.state_dict(), strict=True)
    timm.create_model(name, num_classes=0).load_state_dict(backbone.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(backbone.eval()(images), reference.eval()(images))


def test_cifar_stem_keeps_keys_and_resolution():
    small, _ = build_backbone("resnet18", "auto", 32)
    large, _ = build_backbone("resnet18", "auto", 224)
    assert list(small.state_dict()) == list(large.state_dict())
    assert small.conv1.weight.shape == (64, 3, 3, 3) and small.conv1.padding == (1, 1)
    assert isinstance(small.maxpool, nn.Identity) and not isinstance(large.maxpool, nn.Identity)


def test_resnet8_is_small():
    backbone, width = build_backbone("resnet8", "auto", 32)
    assert backbone(torch.randn(2, 3, 32, 32)).shape == (2, width)
    assert sum(w.numel() for w in backbone.parameters()) < 100_000


def test_given_weights_are_loaded_without_a_classifier(tmp_path):
    source = torchvision.models.resnet18(weights=None)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    backbone, _ = build_backbone("resnet18", "imagenet", 224)
    load_backbone_weights(backbone, str(tmp_path / "w.safetensors"))
    torch.testing.assert_close(backbone.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_given_weights_that_do_not_fit_are_one_clear_line(tmp_path):
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    backbone, _ = build_backbone("resnet18", "imagenet", 224)
    with pytest.raises(UserError, match="does not fit the backbone"):
        load_backbone_weights(backbone, str(tmp_path / "w.safetensors"))
    with pytest.raises(UserError, match=r"cannot read model\.weights"):
        load_backbone_weights(backbone, str(tmp_path / "absent.safetensors"))


def test_gaussian_head_standardises_means_and_bounds_variances():
    head = GaussianHead(16, 32, 8, bound=2.0).train()
    mean, logvar = head(100 * torch.randn(256, 16))
    torch.testing.assert_close(mean.mean(dim=0), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(mean.std(dim=0, unbiased=False), torch.ones(8), atol=1e-3, rtol=0)
    assert logvar.abs().max() <= 2.0
    torch.testing.assert_close(bounded(torch.tensor([-100.0, 0.01, 100.0]), 2.0), torch.tensor([-2.0, 0.01, 2.0]))


@pytest.mark.parametrize("method", ["vssl", "byol", "moco_v3"])
def test_published_heads(method):
    model = student(method)
    features, out = model(torch.randn(8, 3, 32, 32))
    assert features.shape == (8, 64) and out.mean.shape == (8, 8)
    assert (out.logvar is not None) == (method == "vssl")
    linear = [m for m in (*model.encoder.projector.modules(), *model.predictor.modules()) if isinstance(m, nn.Linear)]
    assert all((m.bias is not None) == (method != "moco_v3") for m in linear)


def test_without_predictor_the_mean_is_the_encoders():
    model = student(predictor=False)
    images = torch.randn(8, 3, 32, 32)
    torch.testing.assert_close(model(images)[1].mean, model.encoder(images)[1].mean)


def test_batch_statistics_are_a_views_own():
    model = student()
    views = torch.cat([torch.randn(8, 3, 32, 32), 5 + 3 * torch.randn(8, 3, 32, 32)])
    _, both = per_view(model, views)
    _, first = copy.deepcopy(model)(views[:8])
    torch.testing.assert_close(both.mean[:8], first.mean)
    _, mixed = copy.deepcopy(model)(views)
    assert not torch.allclose(both.mean, mixed.mean, atol=1e-2)


def test_teacher_is_the_moving_average_buffers_and_all():
    model = student()
    teacher = Teacher(model.encoder)
    before = copy.deepcopy(teacher.encoder.state_dict())
    model(torch.randn(16, 3, 32, 32))  # moves the student's running statistics
    with torch.no_grad():
        for weight in model.parameters():
            weight += 1.0
    teacher.update(torch.tensor(0.25))
    for key, value in teacher.encoder.state_dict().items():
        if value.is_floating_point():
            expected = 0.75 * before[key] + 0.25 * model.encoder.state_dict()[key]
            torch.testing.assert_close(value, expected, msg=key)
    assert not torch.equal(before["backbone.bn1.running_mean"], teacher.encoder.backbone.bn1.running_mean)


def test_teacher_normalises_with_the_batch_and_leaves_its_buffers_alone():
    model = student()
    teacher = Teacher(model.encoder)
    before = copy.deepcopy(teacher.encoder.state_dict())
    images = 3 + torch.randn(16, 3, 32, 32)
    _, ours = teacher.encoder(images)
    _, theirs = model.encoder(images)
    torch.testing.assert_close(ours.mean, theirs.mean)
    assert all(torch.equal(before[k], v) for k, v in teacher.encoder.state_dict().items())
    assert not any(w.requires_grad for w in teacher.encoder.parameters())


def test_teacher_update_keeps_the_tensors():
    model = student()
    teacher = Teacher(model.encoder)
    pointers = [w.data_ptr() for w in teacher.encoder.state_dict().values()]
    teacher.update(torch.tensor(0.5))
    assert pointers == [w.data_ptr() for w in teacher.encoder.state_dict().values()]


def test_the_teachers_variance_head_is_trained():
    """Its source, the student encoder's own variance head, receives gradient."""
    from vssl.methods import ObjectiveConfig, build_objective

    model = student()
    teacher = Teacher(model.encoder)
    views = torch.randn(16, 3, 32, 32)
    objective = build_objective(ObjectiveConfig(), 2.0)
    with torch.no_grad():
        _, target = per_view(teacher.encoder, views)
    _, prediction = per_view(model, views)
    objective(prediction, target, None)["loss"].backward()
    assert model.encoder.projector.logvar.weight.grad.abs().sum() > 0
