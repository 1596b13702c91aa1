"""What tests of training compare."""

import torch


def everything(trainer):
    """All tensors that a step changes, as one flat list."""
    flat = []

    def walk(value):
        if isinstance(value, torch.Tensor):
            flat.append(value.clone())
        elif isinstance(value, dict):
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(trainer.train_step.state_dict())
    return flat


def first_batch(trainer):
    return next(iter(trainer.loader))
