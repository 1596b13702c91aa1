"""The linear probes know no scale and no offset of features, and agree with scikit-learn's logistic regression."""

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from vssl.evaluation.linear import LEARNING_RATES, linear_predict, select_and_fit
from vssl.evaluation.probe import OnlineProbe

CHANGES = [(0.01, 0.0), (0.01, 30.0), (1.0, 3.0), (1.0, 30.0), (1000.0, 0.0), (1000.0, 30.0)]


@pytest.fixture(scope="module")
def pixels() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The digits' pixels, some of which are constant, as features: training and validation halves with labels."""
    images, labels = load_digits(return_X_y=True)
    features, labels = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    return features[::2], labels[::2], features[1::2], labels[1::2]


def linear_top1(train, train_labels, val, val_labels):
    weights, held_out = select_and_fit(train, train_labels, 10, epochs=40)
    assert list(held_out) == list(LEARNING_RATES)
    return (linear_predict(weights, val)[0].argmax(dim=1) == val_labels).double().mean().item()


def test_scale_and_offset_of_features_do_not_matter_to_the_linear_protocol(pixels):
    train, train_labels, val, val_labels = pixels
    plain = linear_top1(*pixels)
    for scale, offset in CHANGES:
        top1 = linear_top1(train * scale + offset, train_labels, val * scale + offset, val_labels)
        assert top1 == pytest.approx(plain, abs=0.005), (scale, offset)
    scaler = StandardScaler().fit(train)
    other = LogisticRegression(max_iter=1000).fit(scaler.transform(train), train_labels)
    assert plain == pytest.approx(other.score(scaler.transform(val), val_labels), abs=0.02)


def test_scale_and_offset_of_features_do_not_matter_to_the_online_probe(pixels):
    train, train_labels, val, val_labels = pixels

    def top1(scale, offset):
        probe = OnlineProbe(64, 10)
        optimizer = torch.optim.SGD(probe.parameters(), 0.1)
        order = torch.Generator().manual_seed(0)
        for _ in range(20):
            for index in torch.randperm(len(train), generator=order).split(64):
                optimizer.zero_grad()
                probe.loss(train[index] * scale + offset, train_labels[index]).backward()
                optimizer.step()
        return (probe(val * scale + offset).argmax(dim=1) == val_labels).double().mean().item()

    plain = top1(1.0, 0.0)
    assert plain > 0.9
    for change in CHANGES:
        assert top1(*change) == pytest.approx(plain, abs=0.005), change
