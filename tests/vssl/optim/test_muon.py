"""Muon against a loop over the weights, and what its orthogonalisation does."""

import math

import pytest
import torch
from torch import nn

from support.optim import gradients, make
from vssl.optim.muon import orthogonalise


@pytest.mark.parametrize("shape", [(3, 6, 6), (2, 64, 576), (2, 512, 128), (1, 2, 9)])
def test_singular_values_become_about_one_and_the_singular_vectors_stay(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrices)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.65 and values.max() < 1.25
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ result @ vh.mT
    torch.testing.assert_close(inner, torch.diag_embed(inner.diagonal(dim1=1, dim2=2)), atol=1e-3, rtol=0.0)


def test_a_stack_gives_what_its_matrices_give_alone_and_zero_stays_zero():
    matrices = torch.randn(3, 5, 8)
    alone = torch.cat([orthogonalise(one[None]) for one in matrices])
    torch.testing.assert_close(orthogonalise(matrices), alone)
    assert torch.equal(orthogonalise(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


class Net(nn.Module):
    """Two kernels and two matrices of the same shape each, a depthwise kernel, norms and biases."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3)
        self.depthwise, self.norm = nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)
        self.wide, self.tall, self.other = nn.Linear(6, 3), nn.Linear(3, 6), nn.Linear(6, 3)


def newton_schulz(matrix):
    x = matrix / matrix.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    return x


def reference(weights, grads, momenta, lr, decay, momentum):
    """One step, as it is written; grads and momenta by name."""
    for name, weight in weights.items():
        momenta[name] = momentum * momenta[name] + grads[name]
        update = newton_schulz((grads[name] + momentum * momenta[name]).flatten(1)).view_as(weight)
        rows, columns = len(weight), weight[0].numel()
        weights[name] = (1 - lr * decay) * weight - lr * 0.2 * math.sqrt(max(rows, columns)) * update


PLAIN, CHANNELS = torch.contiguous_format, torch.channels_last


@pytest.mark.parametrize(("layout", "of_gradient"), [(PLAIN, PLAIN), (CHANNELS, CHANNELS), (CHANNELS, PLAIN)])
def test_a_step_is_the_formula_and_adamw_takes_the_rest(layout, of_gradient):
    model, twin = Net().to(memory_format=layout), Net()
    optimizer = make(model, "muon", lr=0.03, weight_decay=0.2)
    names = [f"{part}.weight" for part in ("first", "second", "wide", "tall", "other")]
    expected = {name: weight.detach().clone() for name, weight in twin.named_parameters() if name in names}
    momenta = {name: torch.zeros_like(weight) for name, weight in expected.items()}
    rest = {name: weight for name, weight in twin.named_parameters() if name not in names}
    groups = [
        {"params": [w for w in rest.values() if w.ndim > 1], "weight_decay": 0.2},
        {"params": [w for w in rest.values() if w.ndim == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, 0.03)
    for step in range(3):
        gradients(twin, step)
        grads = {name: weight.grad for name, weight in twin.named_parameters()}
        for name, weight in model.named_parameters():
            weight.grad = grads[name].clone(memory_format=of_gradient if weight.ndim == 4 else PLAIN)
        optimizer.step()
        reference(expected, grads, momenta, 0.03, 0.2, 0.95)
        adamw.step()
    for name, weight in model.named_parameters():
        wanted = expected[name] if name in names else rest[name]
        torch.testing.assert_close(weight, wanted, rtol=1e-3, atol=1e-5, msg=name, check_stride=False)


def test_updates_have_adamws_size():
    """0.2 is the root mean square of AdamW's usual updates."""
    model = Net()
    optimizer = make(model, "muon", lr=1.0, weight_decay=0.0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    gradients(model, 0)
    optimizer.step()
    for part in ("first", "wide", "tall"):
        moved = dict(model.named_parameters())[f"{part}.weight"] - before[f"{part}.weight"]
        assert 0.15 < moved.square().mean().sqrt() < 0.25
