"""Runs that no longer learn are noticed, healthy ones are left in peace."""

import pytest

from vssl.engine.collapse_alarms import Alarms
from vssl.engine.trainer import Trainer

HEALTHY = {"feature_std": 0.5, "effective_rank": 8.0, "grad_norm": 0.1, "on_bound": 0.1}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"feature_std": 0.04}, "collapse: feature_std is 0.040; the features of all images are nearly the same"),
        ({"effective_rank": 1.01}, "collapse: effective_rank is 1.01; all features lie on one line"),
        ({"grad_norm": 0.0}, "nothing is learned: the gradient is exactly 0; lower optim.lr and start anew"),
        (
            {"on_bound": 1.0},
            "the variance carries no information: 100% of the log-variances lie on their bound (method.logvar_bound)",
        ),
    ],
)
def test_each_sign_is_told_once(change, line):
    alarms = Alarms(images=100)
    assert alarms.of_step(HEALTHY) == []
    assert alarms.of_step(HEALTHY | change) == [line]
    assert alarms.of_step(HEALTHY | change) == []


def test_a_method_without_variance_has_no_alarm_about_it():
    assert Alarms(100).of_step({"feature_std": 0.5, "effective_rank": 8.0}) == []


def test_an_encoder_is_worse_only_beyond_the_error_of_the_measurement():
    assert Alarms(100).of_knn(0.5, 0.4) == []
    line = "the encoder got worse: kNN top-1 is 0.400, it was 0.500 before training"
    assert Alarms(10_000).of_knn(0.5, 0.4) == [line]
    assert Alarms(10_000).of_knn(0.4, 0.5) == []


def test_a_hopeless_learning_rate_is_noticed(config, capsys):
    Trainer(config("optim.lr=1000", "optim.name=adamw", "optim.warmup_epochs=0")).fit()
    assert capsys.readouterr().err.count("of the log-variances lie on their bound (method.logvar_bound)") == 1


def test_an_ordinary_run_raises_no_alarm(config, capsys):
    Trainer(config("eval.every=1")).fit()
    err = capsys.readouterr().err
    assert not any(sign in err for sign in ("collapse", "nothing is learned", "no information", "got worse"))
