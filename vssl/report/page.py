"""The whole page."""

import statistics
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from vssl.config import to_dict
from vssl.report.charts import CURVES, draw_curves, name_runs
from vssl.report.markup import Html, beside, bullets, chart, page, paragraph, section, table
from vssl.report.measure import BANK, NETWORKS, QUERIES, spread
from vssl.report.run import Run
from vssl.report.sections import show_certainty, show_map, show_neighbours, show_views
from vssl.report.verdict import ERRORS, describe_verdict, difference, share

__all__ = ["write_page"]

_POINTS = 8  # rows of a curve's table, at most
_NONE = "-"


def write_page(runs: Sequence[Run]) -> str:
    """The HTML document about one or more runs: the first sections compare them, then each has its own."""
    names = name_runs(run.path for run in runs)
    named = {names[run.path]: run for run in runs}
    return page(
        f"Did pretraining work? {', '.join(named)}",
        Path(__file__).with_name("style.css").read_text(),
        _verdicts(named),
        _figures(named),
        _curves(runs, names),
        *(
            section(f"Images: {name}", show_neighbours(run), show_map(run), show_certainty(run) or "", show_views(run))
            for name, run in named.items()
        ),
        _throughput(named),
        _settings("Config", {name: to_dict(run.model.config) for name, run in named.items()}),
        _settings("Environment", {name: run.environment for name, run in named.items()}),
    )


def _verdicts(runs: dict[str, Run]) -> Html:
    sentences = {name: describe_verdict(run.measured.figures) for name, run in runs.items()}
    items = sentences.values() if len(runs) == 1 else [f"{name}: {text}" for name, text in sentences.items()]
    text = (
        "± is one standard error: how far the figures would move with other images of the same kind. A difference "
        f"counts only if it is larger than {ERRORS} standard errors. Another seed of the training would move the "
        "figures further, by an amount that one run cannot show."
    )
    return section("Verdict", bullets(items, "verdicts"), paragraph(text))


def _figures(runs: dict[str, Run]) -> Html:
    gain = "Gain, points"
    head = ["Run and features", "kNN top-1, %", gain, "Views matched, %", gain, "RankMe", "Effective rank"]
    rows, notes = [], []
    for name, run in runs.items():
        measured = run.measured
        start = measured.figures["untrained"]
        for key, what in NETWORKS.items():
            one = measured.figures[key]
            rows.append(
                [
                    what if len(runs) == 1 else f"{name}: {what}",
                    *_hits(one.correct, start.correct if key == "trained" else None),
                    *_hits(one.matched, start.matched if key == "trained" else None),
                    f"{one.rankme:.1f}",
                    f"{one.effective_rank:.1f}",
                ]
            )
        notes.append(f"{name}: {_describe_images(run)}")
    text = (
        "kNN: k = 20, T = 0.07, cosine similarity. Views matched: how often the nearest of all second views is that of "
        "the same image. RankMe and effective rank: in how many dimensions the features vary. Gain: over the same "
        "network before training: the weights that the run began with, and BatchNorm statistics measured on these data "
        "(at epoch 0 of the curves they are not measured yet). "
        f"At most {QUERIES:,} images are looked up among at most {BANK:,}."
    )
    return section("Figures", table("Figures of the features", head, rows), paragraph(text), bullets(notes, "notes"))


def _hits(hits: Tensor | None, others: Tensor | None) -> list[str]:
    """The share of hits and how much larger it is than that of ``others``, bool [N]; None: does not exist."""
    gain = _NONE if hits is None or others is None else str(difference(hits, others))
    return [_NONE if hits is None else str(share(hits)), gain]


def _describe_images(run: Run) -> str:
    measured = run.measured
    counts = {name: split.count for name, split in measured.packed.splits.items()}
    text = (
        f"data set {measured.packed.dataset} in {measured.packed.dir}, {len(measured.queries):,} images of "
        f"{measured.queries.split} looked up among {len(measured.bank):,} of train "
        f"(it has {', '.join(f'{count:,} in {name}' for name, count in counts.items())}), "
        f"checkpoint of step {run.model.step:,}"
    )
    if measured.queries.split == "train":
        text += "; it has no val split, so that a part of train is looked up in the rest"
    if run.model.config.model.weights:
        text += f"; before training it had the weights of {run.model.config.model.weights}"
    return text + "."


def _curves(runs: Sequence[Run], names: dict[Path, str]) -> Html:
    """A chart for each of ``CURVES`` that a run has, beside a table with its numbers."""
    lines = {run.path: run.metrics for run in runs}
    parts = []
    for key, (label, factor) in CURVES.items():
        values = {
            names[path]: {line["epoch"]: factor * line[key] for line in found if key in line}
            for path, found in lines.items()
        }
        epochs = sorted(set().union(*values.values()))
        if epochs:
            rows = [[f"{epoch:g}", *(_number(points, epoch) for points in values.values())] for epoch in _thin(epochs)]
            drawn = chart(partial(draw_curves, lines, [key]), f"Curve of {label} over {epochs[-1]:g} epochs")
            parts.append(beside(drawn, table(f"Values of the curve: {label}", ["Epoch", *values], rows)))
    return section("Curves", *parts)


def _number(points: dict[float, float], epoch: float) -> str:
    return f"{points[epoch]:.4g}" if epoch in points else _NONE


def _thin(values: Sequence[float]) -> list[float]:
    """At most ``_POINTS`` of the values, spread evenly, the first and the last among them."""
    places = spread(len(values), _POINTS)
    return [values[place] for place in places]


def _throughput(runs: dict[str, Run]) -> Html:
    rows = []
    for name, run in runs.items():
        rates = [line["images_per_second"] for line in run.metrics if "images_per_second" in line]
        hardware = run.environment.get("hardware", {})
        figures = [f"{pick(rates):,.0f}" if rates else _NONE for pick in (statistics.median, min, max)]
        device = hardware.get("gpu") or f"{hardware.get('cpu', 'unknown')}, {hardware.get('cores', '?')} cores"
        rows.append([name, *figures, device, run.environment.get("world_size", _NONE)])
    head = ["Run", "Median", "Least", "Most", "Hardware", "Processes"]
    return section("Throughput", table("Images per second in training", head, rows))


def _settings(title: str, columns: dict[str, dict]) -> Html:
    flat = {name: dict(_flatten(values)) for name, values in columns.items()}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    rows = [[key, *(values.get(key, _NONE) for values in flat.values())] for key in keys]
    return section(title, table(f"{title} of each run", ["Key", *flat], rows, long=True))


def _flatten(values: dict, prefix: str = "") -> Iterable[tuple[str, object]]:
    """Nested values by dotted key."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
