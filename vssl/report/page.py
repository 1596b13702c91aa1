"""The whole page: its values, and the template that shows them."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from torch import Tensor

from vssl.config import to_dict
from vssl.report.charts import CURVES, draw_curves, name_runs
from vssl.report.embedded import Chart, embed_chart
from vssl.report.measure import BANK, NETWORKS, QUERIES, spread
from vssl.report.run import Run
from vssl.report.sections import show_images
from vssl.report.verdict import ERRORS, describe_verdict, difference, share

__all__ = ["write_page"]

_POINTS = 8  # rows of a curve's table, at most
_NONE = "-"

Rows = list[list[object]]  # of a table; the first cell of each names the row


@dataclass(frozen=True)
class Curve:
    """A chart over the epochs, and some of its numbers."""

    label: str
    chart: Chart
    rows: Rows


def write_page(runs: Sequence[Run]) -> str:
    """The HTML document about one or more runs: the first sections compare them, then each has its own."""
    names = name_runs(run.path for run in runs)
    named = {names[run.path]: run for run in runs}
    return _open_template().render(
        runs=named,
        verdicts={name: describe_verdict(run.measured.figures) for name, run in named.items()},
        errors=ERRORS,
        figures=_figures(named),
        most_queries=QUERIES,
        most_bank=BANK,
        curves=list(_curves(runs, names)),
        images={name: show_images(run) for name, run in named.items()},
        throughput=_throughput(named),
        config=_settings([to_dict(run.model.config) for run in runs]),
        environment=_settings([run.environment for run in runs]),
    )


def _open_template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = "{:,}".format
    return environment.get_template("page.html.j2")


def _figures(runs: dict[str, Run]) -> Rows:
    rows: Rows = []
    for name, run in runs.items():
        start = run.measured.figures["untrained"]
        for key, what in NETWORKS.items():
            one = run.measured.figures[key]
            rows.append(
                [
                    what if len(runs) == 1 else f"{name}: {what}",
                    *_hits(one.correct, start.correct if key == "trained" else None),
                    *_hits(one.matched, start.matched if key == "trained" else None),
                    f"{one.rankme:.1f}",
                    f"{one.effective_rank:.1f}",
                ]
            )
    return rows


def _hits(hits: Tensor | None, others: Tensor | None) -> list[str]:
    """The share of hits and its difference to that of ``others``, bool [N]; None if there are none."""
    gain = _NONE if hits is None or others is None else str(difference(hits, others))
    return [_NONE if hits is None else str(share(hits)), gain]


def _curves(runs: Sequence[Run], names: dict[Path, str]) -> Iterable[Curve]:
    """Each of ``CURVES`` that a run has."""
    lines = {run.path: run.metrics for run in runs}
    for key, (label, factor) in CURVES.items():
        values = {
            names[path]: {line["epoch"]: factor * line[key] for line in found if key in line}
            for path, found in lines.items()
        }
        epochs = sorted(set().union(*values.values()))
        if epochs:
            rows: Rows = [
                [f"{epoch:g}", *(_number(points, epoch) for points in values.values())] for epoch in _thin(epochs)
            ]
            drawn = embed_chart(partial(draw_curves, lines, [key]), f"Curve of {label} over {epochs[-1]:g} epochs")
            yield Curve(label, drawn, rows)


def _number(points: dict[float, float], epoch: float) -> str:
    return f"{points[epoch]:.4g}" if epoch in points else _NONE


def _thin(values: Sequence[float]) -> list[float]:
    """At most ``_POINTS`` of the values, spread evenly, the first and the last among them."""
    indices = spread(len(values), _POINTS)
    return [values[index] for index in indices]


def _throughput(runs: dict[str, Run]) -> Rows:
    rows: Rows = []
    for name, run in runs.items():
        rates = [line["images_per_second"] for line in run.metrics if "images_per_second" in line]
        hardware = run.environment.get("hardware", {})
        figures = [f"{pick(rates):,.0f}" if rates else _NONE for pick in (statistics.median, min, max)]
        device = hardware.get("gpu") or f"{hardware.get('cpu', 'unknown')}, {hardware.get('cores', '?')} cores"
        rows.append([name, *figures, device, run.environment.get("world_size", _NONE)])
    return rows


def _settings(columns: Sequence[dict]) -> Rows:
    """A row for each dotted key, a column for each of the nested dicts."""
    flat = [dict(_flatten(values)) for values in columns]
    keys = dict.fromkeys(key for values in flat for key in values)
    return [[key, *(values.get(key, _NONE) for values in flat)] for key in keys]


def _flatten(values: dict, prefix: str = "") -> Iterable[tuple[str, object]]:
    """Nested values by dotted key."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
