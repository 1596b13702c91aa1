"""Which weights share a group: by kind, and by factor of the learning rate."""

import pytest
import torch
from torch import nn

from pipelines.errors import UserError
from support.optim import gradients, make, network
from vssl.engine.config import resolve
from vssl.methods import METHODS, build_method
from vssl.models.backbones import build_backbone
from vssl.models.config import ModelConfig
from vssl.optim import set_learning_rate
from vssl.optim.groups import layer_depths


def test_biases_and_norms_are_neither_decayed_nor_adapted():
    model = network()
    optimizer = make(model, "lars")
    decayed, plain = optimizer.param_groups
    assert {w.ndim for w in decayed["params"]} == {2} and (decayed["kind"], decayed["decay"]) == ("decayed", 0.1)
    assert {w.ndim for w in plain["params"]} == {1} and (plain["kind"], plain["decay"]) == ("plain", 0.0)


def assert_grouped(module, plain):
    """The weights without decay are those named ``plain``; within both groups they keep the module's order."""
    named = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    groups = make(module, "sgd").param_groups
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
    groups = make(module, "sgd").param_groups
    decayed = {id(weight) for weight in groups[0]["params"]}
    assert {name for name, weight in module.named_parameters() if id(weight) in decayed} == {
        "0.attention.in_proj_weight",
        "0.attention.out_proj.weight",
        "0.embed.1.parametrizations.weight.original0",
        "0.embed.1.parametrizations.weight.original1",
    }


def matrices(module):
    """The names of the weights of the kind ``matrix``."""
    found = {id(w) for group in make(module, "muon").param_groups if group["kind"] == "matrix" for w in group["params"]}
    return {name for name, weight in module.named_parameters() if id(weight) in found}


def test_matrices_are_no_tables_no_depthwise_kernels_and_no_classifiers(config):
    class Classifier(nn.Linear):
        def classifier_weights(self):
            return {"weight"}

    module = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 3),
            "kernel": nn.Conv2d(3, 6, 3),
            "depthwise": nn.Conv2d(6, 6, 3, groups=6),
            "table": nn.Embedding(5, 4),
            "one": nn.Linear(4, 1),
            "classifier": Classifier(4, 3),
        }
    )
    assert matrices(module) == {"linear.weight", "kernel.weight"}
    plain = make(module, "muon").param_groups[2]
    assert {w.ndim for w in plain["params"]} == {1}
    settings = resolve(config("method.name=dino"))
    method = build_method(settings.method, settings.model, 8)
    weights = {name for name, w in method.named_parameters() if w.requires_grad and w.ndim > 1}
    assert matrices(method) == weights - {"student.projector.prototypes.weight"}


def rates(module, backbone, name="sgd", **options):
    """The rate of every weight, by name, at a scheduled rate of 2."""
    optimizer = make(module, name, backbone=backbone, **options)
    set_learning_rate(optimizer, 2.0)
    found = {id(w): group["lr"].item() for group in optimizer.param_groups for w in group["params"]}
    return {key: found[id(weight)] for key, weight in module.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw", "muon"])
def test_the_backbone_has_a_rate_of_its_own(config, name):
    settings = resolve(config())
    method = build_method(settings.method, settings.model, 8)
    for key, rate in rates(method, method.student.backbone, name, backbone_lr_scale=0.25).items():
        assert rate == (0.5 if key.startswith("student.backbone.") else 2.0), key


@pytest.mark.parametrize("name", ["resnet8", "resnet18"])
def test_layers_of_a_resnet_are_its_stem_and_its_stages(name):
    backbone, _ = build_backbone(ModelConfig(backbone=name), 32)
    stages = 3 if name == "resnet8" else 4
    module = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(2, 2)})
    for key, rate in rates(module, backbone, layer_decay=0.5, backbone_lr_scale=0.5).items():
        part = key.split(".")[1]
        depth = stages - int(part.removeprefix("layer")) if part.startswith("layer") else stages
        assert rate == (2.0 if key.startswith("head") else 0.5**depth), key


@pytest.mark.parametrize("name", ["test_vit", "resnet18", "test_convnext"])
def test_layers_of_a_timm_network_are_timms(name):
    pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay

    backbone, _ = build_backbone(ModelConfig(backbone=f"timm:{name}"), 32)
    ours = rates(backbone, backbone, layer_decay=0.5)
    groups = param_groups_layer_decay(backbone, layer_decay=0.5)
    theirs = {id(w): 2.0 * group["lr_scale"] for group in groups for w in group["params"]}
    assert ours == {key: theirs[id(w)] for key, w in backbone.named_parameters()}
    assert len(set(ours.values())) > 2


def test_groups_of_the_same_factor_share_one_tensor_on_the_device():
    backbone, _ = build_backbone(ModelConfig(backbone="resnet8"), 32)
    optimizer = make(backbone, "adamw", backbone=backbone, layer_decay=0.5)
    tensors = {group["lr_scale"]: group["lr"] for group in optimizer.param_groups}
    assert len(optimizer.param_groups) == 8 and len({id(tensor) for tensor in tensors.values()}) == 4
    assert all(group["lr"] is tensors[group["lr_scale"]] for group in optimizer.param_groups)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_a_factor_multiplies_what_a_step_changes(name):
    moved = []
    for scale in (1.0, 0.5):
        model = network()
        optimizer = make(model, name, backbone=model[0], backbone_lr_scale=scale, weight_decay=0.0)
        before = [w.detach().clone() for w in model.parameters()]
        gradients(model, 0)
        optimizer.step()
        moved.append([w - b for w, b in zip(model.parameters(), before, strict=True)])
    for key, whole, part in zip([name for name, _ in network().named_parameters()], *moved, strict=True):
        torch.testing.assert_close(part, whole * (0.5 if key.startswith("0.") else 1.0), rtol=1e-3, atol=1e-6)


def test_a_network_without_known_layers_has_no_layer_decay():
    with pytest.raises(UserError, match=r"optim.layer_decay: the backbone does not say what its layers are"):
        layer_depths(network())
