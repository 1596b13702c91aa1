"""Protocols and their options; one of the user's own, which trains a copy of the backbone."""

import sys

import pytest
import torch

import vssl
from pipelines.errors import UserError
from pipelines.formats.packed import open_packed
from support.training import save_untrained, small_config
from vssl.evaluation.offline import OfflineEvaluation
from vssl.evaluation.protocols import PROTOCOLS, build_protocol, explain_protocols, find_protocol

FINE_TUNE = """
import copy
from dataclasses import dataclass

import torch
from torch import nn

from pipelines.options import option
from vssl.evaluation.protocols.base import EvaluationProtocol, ProtocolOptions

@dataclass(frozen=True)
class Options(ProtocolOptions):
    epochs: int = option(2, "passes over train", low=0)

class FineTune(EvaluationProtocol):
    Options = Options

    def measure(self, evaluation):
        model, classes = evaluation.model, len(evaluation.packed.classes)
        network = copy.deepcopy(model.backbone).requires_grad_(True).train()
        head = nn.Linear(network(torch.zeros(2, 3, 8, 8)).shape[1], classes)
        optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], 3e-3)
        with evaluation.loader("train", train=True, seed=1) as loader:
            for epoch in range(self.options.epochs):
                loader.set_epoch(epoch)
                for batch in loader:
                    views = evaluation.views(batch, seed=1, epoch=epoch).full
                    loss = nn.functional.cross_entropy(head(network(views)), batch.labels.repeat(2))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        network.eval()
        scores, labels = [], []
        with evaluation.loader("val") as loader, torch.no_grad():
            for batch in loader:
                scores.append(head(network(model.augment.evaluate(batch.pixels, batch.size))))
                labels.append(batch.labels)
        return evaluation.report("fine_tune", torch.cat(scores), torch.cat(labels))
"""


@pytest.fixture(scope="module")
def evaluation(digits, tmp_path_factory):
    """The digits as an untrained student sees them."""
    run = save_untrained(small_config(digits, tmp_path_factory.mktemp("runs") / "run"))
    return OfflineEvaluation(vssl.load(run, device="cpu"), open_packed(digits))


def test_options_change_what_is_measured(evaluation):
    chosen = build_protocol("knn", ["protocol.k=200", "protocol.temperature=0.1"]).measure(evaluation)
    plain = build_protocol("knn").measure(evaluation)
    assert (chosen["k"], chosen["temperature"], plain["k"], plain["temperature"]) == (200, 0.1, 20, 0.07)
    assert chosen["top1"] == plain["wide"]["top1"] and chosen["top5"] != plain["top5"]
    assert build_protocol("linear", ["protocol.epochs=1"]).measure(evaluation)["epochs"] == 1


def test_an_own_protocol_trains_a_copy_of_the_backbone(evaluation, tmp_path, monkeypatch):
    (tmp_path / "own_protocol.py").write_text(FINE_TUNE)
    monkeypatch.syspath_prepend(tmp_path)
    before = [weight.clone() for weight in evaluation.model.backbone.parameters()]
    tuned, untuned = (
        build_protocol("own_protocol:FineTune", [f"protocol.epochs={epochs}"]).measure(evaluation)["top1"]
        for epochs in (2, 0)
    )
    sys.modules.pop("own_protocol")
    assert tuned > 0.5 > untuned
    assert all(torch.equal(a, b) for a, b in zip(before, evaluation.model.backbone.parameters(), strict=True))


def test_the_temperature_of_the_decoder_is_the_methods_or_the_option(evaluation):
    of_method, same, other = (
        build_protocol("uncertainty", overrides).measure(evaluation)["scores"]["decoder"]["histogram"]
        for overrides in ([], ["protocol.temperature=0.1"], ["protocol.temperature=1"])
    )
    assert evaluation.model.config.method.temperature == 0.1 and of_method == same != other


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_and_key_is_explained(name):
    text = explain_protocols()
    assert f"  {name} " in text and find_protocol(name).__doc__.splitlines()[0] in text
    options = find_protocol(name).Options()
    assert all(f"    protocol.{key}=" in text for key in vars(options))


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        (
            "probe",
            "protocol.k=1",
            "--protocol must be knn or linear or uncertainty or package.module:NAME, not",
        ),
        ("pathlib:Path", "protocol.k=1", "Path is not a subclass of vssl.evaluation.protocols.base.EvaluationProtocol"),
        ("knn", "protocol.kk=1", "unknown config key 'protocol.kk'; did you mean 'protocol.k'?"),
        ("knn", "protocol.k=many", "protocol.k must be an integer, not 'many'"),
    ],
)
def test_mistakes_are_one_clear_line(name, override, message):
    with pytest.raises(UserError) as error:
        build_protocol(name, [override])
    assert message in str(error.value)
