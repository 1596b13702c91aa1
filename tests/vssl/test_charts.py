"""Charts: every axis says what it shows, and no element covers another."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tools.bench.charts import draw_loaders, draw_methods
from vssl.charts import save_chart
from vssl.evaluation.charts import draw_uncertainty
from vssl.evaluation.uncertainty import calibration, score_report
from vssl.profile.charts import draw_stages
from vssl.report.charts import draw_curves, draw_map

RATE = {"images_per_second": 10.0, "low": 9.0, "high": 12.0, "repeats": 2}
LINES = [{"epoch": 0.0, "knn_top1": 0.3}, {"epoch": 1.0, "knn_top1": 0.4, "loss": 1.0, "feature_std": 0.5}]


def stages():
    return draw_stages(
        {"stages": {"load": RATE, "step": RATE}, "floors": {"augment": 20.0}, "bottleneck": "step", "advice": "do this"}
    )


def loaders():
    rates = {"vssl ffcv": {"task": "crops"}, "torchvision, PIL": {"task": "crops"}, "libjpeg": {"task": "whole"}}
    return draw_loaders(
        {
            "loaders": {name: RATE | task for name, task in rates.items()},
            "images": {"count": 1000},
            "loading": {"image_size": 32, "workers": 2},
        }
    )


def methods():
    runs = [{"seed": seed, "knn_top1": 0.3, "linear_top1": 0.4, "knn_curve": {0.0: 0.2, 1.0: 0.3}} for seed in (0, 1)]
    arm = {
        "config": {"model": {"backbone": "resnet8"}, "train": {"epochs": 1}},
        "mean": {"knn_top1": 0.3, "online_top1": None, "linear_top1": 0.4},
        "standard_error": {"knn_top1": 0.0, "online_top1": None, "linear_top1": None},
        "runs": runs,
    }
    return draw_methods({"arms": {"vssl": arm, "byol": arm}})


def curves(*paths):
    return draw_curves({Path(path): LINES for path in paths or ("runs/a",)})


def uncertainty():
    correct, score = torch.arange(100) % 3 > 0, torch.randn(100)
    return draw_uncertainty(
        {
            "top1": 0.66,
            "dataset": "digits",
            "ood": {"dataset": "noise"},
            "calibration": calibration(score.exp(), score.exp()),
            "scores": {name: score_report(correct, correct, score, score + 1) for name in ("variance", "norm")},
        }
    )


def embedding():
    rows = torch.arange(30).chunk(15)
    points = torch.randn(30, 2).numpy()
    return draw_map(points, {f"class {n}": row.numpy() for n, row in enumerate(rows)}, ("first", "second"))


@pytest.mark.parametrize(
    "draw", [stages, loaders, methods, curves, uncertainty, embedding], ids=lambda draw: draw.__name__
)
def test_every_axis_is_labelled_and_the_chart_is_complete(draw, tmp_path):
    figure = draw()
    assert figure.axes
    for axes in figure.axes:
        assert axes.get_xlabel() and axes.get_ylabel()
    save_chart(figure, tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").width > 500 and os.listdir(tmp_path) == ["chart.png"]


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_several_runs_are_labelled_by_their_paths():
    figure = curves("runs/a/seed0", "runs/b/seed0", "runs/c/other")
    assert legend(figure) == ["runs/a/seed0", "runs/b/seed0", "other"]  # paths where the names alone coincide
    assert len(figure.axes[0].lines) == 3
    assert legend(curves("runs/a/seed0")) == ["seed0"]


@pytest.mark.filterwarnings("error")
def test_a_legend_has_only_letters_of_its_font(tmp_path):
    names = ("caf\udce9", "\u732b", "caf\u00e9", "\u043a\u043e\u0442")
    figure = draw_map(np.eye(4)[:, :2], {name: np.array([i]) for i, name in enumerate(names)}, ("x", "y"))
    figure.savefig(tmp_path / "map.svg")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "caf\\udce9",
        "\\u732b",
        "caf\u00e9",
        "\u043a\u043e\u0442",
    ]


def test_the_bars_of_accuracies_begin_at_zero():
    bars = methods().axes[0]
    assert bars.get_ylim()[0] == 0
    assert [label.get_text() for label in bars.get_xticklabels()] == ["knn", "online", "linear"]
