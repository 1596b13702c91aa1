"""LARS against its formula."""

import pytest
import torch
from torch import nn

from support.optim import gradients, make, network
from vssl.optim.lars import LARS, LARSOptions


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
    optimizer = make(model, "lars", lr)
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
    groups = [{"params": [weight], "lr": torch.tensor(0.5), "kind": "decayed", "decay": 0.0}]
    optimizer = LARS(groups, LARSOptions())
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), -0.5))
