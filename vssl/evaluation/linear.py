"""Offline linear classification of cached features: many learning rates at once, one selected on held-out images."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LEARNING_RATES", "Selected", "fit_linear", "linear_predict", "select_and_fit", "select_rate"]

LEARNING_RATES = tuple(10 ** (-2.5 + 0.25 * step) for step in range(17))  # 0.003 to 32
_HELD_OUT = 0.1  # share of the training images that selects the learning rate


def linear_predict(weights: Tensor, features: Tensor) -> Tensor:
    """Logits [R, N, C] of R classifiers: weights [R, F + 1, C], whose last row is the bias, features [N, F]."""
    return features @ weights[:, :-1] + weights[:, -1:]


@torch.no_grad()
def fit_linear(
    features: Tensor,
    labels: Tensor,
    classes: int,
    learning_rates: tuple[float, ...],
    *,
    epochs: int = 100,
    batch_size: int = 256,
    momentum: float = 0.9,
    seed: int = 0,
) -> Tensor:
    """Softmax regression by SGD: one classifier per learning rate, all trained on the same batches.

    The recipe is solo-learn's for ImageNet-100 (da Costa et al., JMLR 2022): 100 epochs, batches of 256, no
    weight decay, the rate divided by 10 after 60 % and 80 % of the epochs. Weights start at 0.

    Args:
        features: float32 [N, F], labels: int64 [N] in 0..classes-1, on one device.

    Returns:
        weights float32 [R, F + 1, classes], for ``linear_predict``.
    """
    weights = torch.zeros(len(learning_rates), features.shape[1] + 1, classes, device=features.device)
    velocity = torch.zeros_like(weights)
    rates = torch.tensor(learning_rates, device=features.device)[:, None, None]
    generator = torch.Generator().manual_seed(seed)
    drops = {round(0.6 * epochs), round(0.8 * epochs)}
    for epoch in range(epochs):
        if epoch in drops:
            rates = rates / 10
        for index in torch.randperm(len(labels), generator=generator).to(labels.device).split(batch_size):
            x, y = features[index], labels[index]
            # The gradient of the mean cross-entropy with respect to the logits: (softmax - one-hot) / B.
            error = linear_predict(weights, x).softmax(dim=2)
            error[:, torch.arange(len(y), device=y.device), y] -= 1
            error /= len(y)
            velocity *= momentum
            velocity[:, :-1] += x.T @ error
            velocity[:, -1] += error.sum(dim=1)
            weights -= rates * velocity
    return weights


def _standardise(features: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Features with mean 0 and variance 1 (those that are constant but for rounding become 0), and what turns weights
    for them into weights for the features as they were."""
    exact = features.double()
    variance, mean = torch.var_mean(exact, dim=0, correction=0)
    deviation = variance.sqrt()
    scale = torch.where(deviation > 1e-6 * mean.abs(), 1 / deviation, 0.0)

    def restore(weights: Tensor) -> Tensor:
        scaled = weights[:, :-1].double() * scale[:, None]
        bias = weights[:, -1:] - (mean[:, None] * scaled).sum(dim=1, keepdim=True)
        return torch.cat([scaled, bias], dim=1).float()

    return ((exact - mean) * scale).float(), restore


class Selected(NamedTuple):
    """A classifier and the learning rate that was selected for it."""

    weights: Tensor  # [1, F + 1, classes], for ``linear_predict``
    rate: float
    top1: dict[float, float]  # of each learning rate on the held-out images, in [0, 1]


def select_rate(
    features: Tensor,
    labels: Tensor,
    classes: int,
    learning_rates: tuple[float, ...] = LEARNING_RATES,
    *,
    epochs: int = 100,
    seed: int = 0,
) -> Selected:
    """Select the learning rate of the greatest likelihood on a random tenth of the images, then train on all images
    with it. (Of so few images the accuracy is often equal for several rates, and rounding would decide.)

    Features are standardised first, so that their scale and offset do not matter (MAE's BatchNorm without weights does
    it for each batch, arXiv 2111.06377).
    """
    features, restore = _standardise(features)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    held_out, rest = order.tensor_split([max(1, round(_HELD_OUT * len(labels)))])
    weights = fit_linear(features[rest], labels[rest], classes, learning_rates, epochs=epochs, seed=seed)
    top1, losses = {}, {}
    for rate, one in zip(learning_rates, weights, strict=True):  # the logits of all may not fit into memory
        logits = linear_predict(one[None], features[held_out])[0]
        top1[rate] = (logits.argmax(dim=1) == labels[held_out]).double().mean().item()
        losses[rate] = F.cross_entropy(logits, labels[held_out]).item()
    best = min(losses, key=losses.__getitem__)
    return Selected(restore(fit_linear(features, labels, classes, (best,), epochs=epochs, seed=seed)), best, top1)


def select_and_fit(
    features: Tensor,
    labels: Tensor,
    classes: int,
    learning_rates: tuple[float, ...] = LEARNING_RATES,
    *,
    epochs: int = 100,
    seed: int = 0,
) -> tuple[Tensor, dict[float, float]]:
    """``weights`` and ``top1`` of ``select_rate``."""
    weights, _, top1 = select_rate(features, labels, classes, learning_rates, epochs=epochs, seed=seed)
    return weights, top1
