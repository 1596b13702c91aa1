"""Small networks with gradients, and their optimizers."""

import torch
from torch import nn

from vssl.optim import build_optimizer, find_optimizer, set_learning_rate


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def gradients(model, seed, scale=1.0):
    """Give every weight a random gradient."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.grad = scale * torch.randn(weight.shape, generator=generator)


def make(module, name, lr=0.1, backbone=None, **options):
    """The optimizer of a module, at a rate; ``weight_decay`` is 0.1 unless given."""
    options = {"weight_decay": 0.1, **options}
    optimizer = build_optimizer(module, find_optimizer(name).Options(name=name, lr=lr, **options), backbone)
    set_learning_rate(optimizer, lr)
    return optimizer
