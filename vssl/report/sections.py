"""The sections of the page about a run's images: neighbours, map, certainty, views."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from pipelines.errors import UserError
from pipelines.formats.packed import open_reader
from vssl.evaluation.uncertainty import most_certain_half
from vssl.report.charts import draw_map
from vssl.report.embedded import Chart, Picture, embed_chart, embed_picture
from vssl.report.measure import Images, Measurement
from vssl.report.run import Run
from vssl.report.verdict import Difference, Share, share

__all__ = ["Certainty", "Map", "Neighbours", "Shown", "Views", "show_images"]

_EXTREMES = 10  # how many of the most and of the least certain images are shown
_COLOURS = 20  # classes with a colour of their own


@dataclass(frozen=True)
class Neighbours:
    """Some images, each with its nearest neighbours by the trained network."""

    labelled: bool
    same: int  # neighbours of the query's class
    found: int  # neighbours in all
    names: list[str]  # of the columns of neighbours
    rows: list[tuple[Picture, list[Picture]]]


@dataclass(frozen=True)
class Map:
    """The queries' features in the plane of their two principal components."""

    chart: Chart
    kept: str  # share of the variance in the plane, in per cent
    one_colour: bool  # because there are more classes than ``colours``
    colours: int
    labelled: bool
    rows: list[list[object]]  # for each group: name, images, middle, and kNN accuracy if ``labelled``


@dataclass(frozen=True)
class Certainty:
    """The images with the lowest and the highest predicted variance."""

    most: list[Picture]
    least: list[Picture]
    rows: list[list[object]]  # accuracies of the most certain half and of all; empty without labels


@dataclass(frozen=True)
class Views:
    """Some images, each with its augmented views."""

    names: list[str]  # of the columns of views
    rows: list[tuple[Picture, list[Picture]]]


@dataclass(frozen=True)
class Shown:
    """All of these; ``certainty`` is None for methods without a variance."""

    neighbours: Neighbours
    map: Map
    certainty: Certainty | None
    views: Views


def show_images(run: Run) -> Shown:
    """The sections of the page about a run's images."""
    measured = run.measured
    return Shown(_neighbours(measured), _map(measured), _certainty(run), _views(measured))


def _read(measured: Measurement, images: Images, rows: Iterable[int]) -> list[np.ndarray]:
    """Pixels uint8 [H, W, 3] of some images."""
    reader = open_reader(measured.packed, images.split)
    try:
        return [reader.image(int(images.index[row])) for row in rows]
    finally:
        reader.close()


def _name(measured: Measurement, images: Images, row: int) -> str:
    """The class of an image, or its number in its split where there are no labels."""
    label = int(images.labels[row])
    return measured.packed.classes[label] if label >= 0 else f"no. {int(images.index[row])}"


def _neighbours(measured: Measurement) -> Neighbours:
    queries, bank = measured.queries, measured.bank
    shown, rows, same = measured.shown.tolist(), [], 0
    for query, pixels, near, alike in zip(
        shown, _read(measured, queries, shown), measured.neighbours.tolist(), measured.similarity.tolist(), strict=True
    ):
        own, neighbours = _name(measured, queries, query), []
        for row, neighbour, similarity in zip(near, _read(measured, bank, near), alike, strict=True):
            name = _name(measured, bank, row)
            mark = " ✓" if measured.labelled and name == own else ""
            same += bool(mark)
            caption = f"{name}{mark}, {similarity:.2f}"
            neighbours.append(embed_picture(neighbour, f"neighbour of {own}: {name}", caption))
        rows.append((embed_picture(pixels, f"query: {own}", own), neighbours))
    names = [f"Neighbour {rank + 1}" for rank in range(measured.neighbours.shape[1])]
    return Neighbours(measured.labelled, same, measured.neighbours.numel(), names, rows)


def _map(measured: Measurement) -> Map:
    features = F.normalize(measured.features.cpu(), dim=1)
    left, sigma, _ = torch.linalg.svd(features - features.mean(dim=0), full_matrices=False)
    points = (left * sigma)[:, :2].numpy()
    shares = (100 * sigma.square() / sigma.square().sum()).tolist()
    labels, classes = measured.queries.labels.cpu().numpy(), measured.packed.classes
    groups = everything = {"all images": np.arange(len(labels))}
    if measured.labelled:
        groups = {name: np.flatnonzero(labels == label) for label, name in enumerate(classes)}
        groups = {name: rows for name, rows in groups.items() if len(rows)}
    one_colour = len(groups) > _COLOURS
    coloured = everything if one_colour else groups
    axes = (f"first component, {shares[0]:.0f} % of the variance", f"second component, {shares[1]:.0f} %")
    alt = f"Scatter plot of {len(points):,} images in two principal components; the table has the middle of each group"
    correct = measured.figures["trained"].correct
    rows: list[list[object]] = [
        [name, len(members), *(f"{value:z.2f}" for value in points[members].mean(axis=0))]
        + ([] if correct is None else [share(correct.cpu()[members])])
        for name, members in groups.items()
    ]
    chart = embed_chart(lambda: draw_map(points, coloured, axes), alt)
    return Map(chart, f"{shares[0] + shares[1]:.0f}", one_colour, _COLOURS, measured.labelled, rows)


def _certainty(run: Run) -> Certainty | None:
    measured = run.measured
    try:
        posterior = run.model.trained_method().posterior(measured.features)
    except UserError:
        return None
    score = posterior.logvar.mean(dim=1)
    order = score.argsort().tolist()

    def pictures(rows: list[int], kind: str) -> list[Picture]:
        named = [(row, _name(measured, measured.queries, row)) for row in rows]
        return [
            embed_picture(pixels, f"{kind} certain: {name}", f"{name}, {score[row].item():.2f}")
            for (row, name), pixels in zip(named, _read(measured, measured.queries, rows), strict=True)
        ]

    rows: list[list[object]] = []
    correct = measured.figures["trained"].correct
    if correct is not None:
        half = most_certain_half(correct, score)
        rows = [
            ["Most certain half", Share(half["top1"], half["standard_error"])],
            ["All images", Share(half["whole_top1"], half["whole_standard_error"])],
            ["Difference", Difference(half["difference"], half["difference_standard_error"])],
        ]
    return Certainty(pictures(order[:_EXTREMES], "most"), pictures(order[::-1][:_EXTREMES], "least"), rows)


def _views(measured: Measurement) -> Views:
    viewed, rows = measured.viewed.tolist(), []
    pictures = _read(measured, measured.queries, viewed)
    for row, pixels, views in zip(viewed, pictures, zip(*measured.views, strict=True), strict=True):
        name = _name(measured, measured.queries, row)
        row = [embed_picture(view.numpy(), f"view {number} of {name}") for number, view in enumerate(views, 1)]
        rows.append((embed_picture(pixels, f"image: {name}", name), row))
    return Views([f"View {number + 1}" for number in range(len(measured.views))], rows)
