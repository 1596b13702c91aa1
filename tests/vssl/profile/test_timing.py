"""Rates of work."""

import math

import torch

from vssl.profile.timing import Timer


def test_a_rate_is_the_work_over_the_time(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))  # every block lasts a second
    rate = Timer(torch.device("cpu"), repeats=3, seconds=1.0).rate(lambda: 10)
    assert (rate.per_second, rate.low, rate.high, rate.repeats) == (10, 10, 10, 3)
    assert rate.milliseconds == 1000
    assert math.isfinite(rate.cpu_cores)
