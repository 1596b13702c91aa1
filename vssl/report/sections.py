"""The sections of the page that show images: neighbours, map, certainty, views."""

from collections.abc import Iterable

import numpy as np
import torch
from torch.nn import functional as F

from pipelines.errors import UserError
from pipelines.formats.packed import open_reader
from vssl.evaluation.uncertainty import most_certain_half
from vssl.report.charts import draw_map
from vssl.report.markup import Html, beside, chart, paragraph, picture, pictures, section, table
from vssl.report.measure import Images, Measurement
from vssl.report.run import Run
from vssl.report.verdict import Difference, Share, share

__all__ = ["show_certainty", "show_map", "show_neighbours", "show_views"]

_EXTREMES = 10  # how many of the most and of the least certain images are shown
_COLOURS = 20  # classes with a colour of their own


def _read(measured: Measurement, images: Images, places: Iterable[int]) -> list[np.ndarray]:
    """Pixels uint8 [H, W, 3] of some images."""
    reader = open_reader(measured.packed, images.split)
    try:
        return [reader.image(int(images.index[place])) for place in places]
    finally:
        reader.close()


def _name(measured: Measurement, images: Images, place: int) -> str:
    """The class of an image, or its number in its split where there are no labels."""
    label = int(images.labels[place])
    return measured.packed.classes[label] if label >= 0 else f"no. {int(images.index[place])}"


def show_neighbours(run: Run) -> Html:
    """Some images, each with those that the trained network finds most similar."""
    measured = run.measured
    queries, bank = measured.queries, measured.bank
    shown, rows, same = measured.shown.tolist(), [], 0
    for query, pixels, near, alike in zip(
        shown, _read(measured, queries, shown), measured.neighbours.tolist(), measured.similarity.tolist(), strict=True
    ):
        own, cells = _name(measured, queries, query), []
        for place, neighbour, similarity in zip(near, _read(measured, bank, near), alike, strict=True):
            name = _name(measured, bank, place)
            mark = " ✓" if measured.labelled and name == own else ""
            same += bool(mark)
            caption = f"{name}{mark}, {similarity:.2f}"
            cells.append(pictures([(picture(neighbour, f"neighbour of {own}: {name}"), caption)]))
        rows.append([pictures([(picture(pixels, f"query: {own}"), own)]), *cells])
    found = measured.neighbours.numel()
    text = "Under each neighbour: its class" if measured.labelled else "Under each neighbour: its number in the data"
    text += " and the cosine similarity of its features to those of the query."
    if measured.labelled:
        text += f" {same} of {found} neighbours have the query's class (✓)."
    head = ["Query", *(f"Neighbour {rank + 1}" for rank in range(measured.neighbours.shape[1]))]
    grid = table("Queries and their nearest neighbours", head, rows)
    return section("Nearest neighbours", paragraph(text), grid, level=3)


def show_map(run: Run) -> Html:
    """The queries' features in the plane of their two principal components."""
    measured = run.measured
    features = F.normalize(measured.features.cpu(), dim=1)
    left, sigma, _ = torch.linalg.svd(features - features.mean(dim=0), full_matrices=False)
    points = (left * sigma)[:, :2].numpy()
    shares = (100 * sigma.square() / sigma.square().sum()).tolist()
    labels, classes = measured.queries.labels.cpu().numpy(), measured.packed.classes
    groups = {"all images": np.arange(len(labels))}
    note = ""
    if measured.labelled:
        groups = {name: np.flatnonzero(labels == label) for label, name in enumerate(classes)}
        groups = {name: rows for name, rows in groups.items() if len(rows)}
        if len(groups) > _COLOURS:
            note = f" There are more than {_COLOURS} classes: all have one colour."
    coloured = groups if len(groups) <= _COLOURS else {"all images": np.arange(len(labels))}
    axes = (f"first component, {shares[0]:.0f} % of the variance", f"second component, {shares[1]:.0f} %")
    text = (
        "Each point is an image: its unit features in their two principal components, which keep "
        f"{shares[0] + shares[1]:.0f} % of their variance.{note}"
    )
    alt = f"Scatter plot of {len(points):,} images in two principal components; the table has the middle of each group"
    correct = measured.figures["trained"].correct
    head = ["Group", "Images", "Middle, first", "Middle, second", *([] if correct is None else ["kNN top-1, %"])]
    rows = [
        [name, len(members), *(f"{value:z.2f}" for value in points[members].mean(axis=0))]
        + ([] if correct is None else [str(share(correct.cpu()[members]))])
        for name, members in groups.items()
    ]
    return section(
        "Map of the embedding",
        paragraph(text),
        beside(chart(lambda: draw_map(points, coloured, axes), alt), table("Groups in the map", head, rows)),
        level=3,
    )


def show_certainty(run: Run) -> Html | None:
    """The images with the lowest and the highest predicted variance; None for methods without a variance."""
    measured = run.measured
    try:
        posterior = run.model.trained_method().posterior(measured.features)
    except UserError:
        return None
    score = posterior.logvar.mean(dim=1)
    order, parts = score.argsort().tolist(), []
    for title, places in (("Most certain", order[:_EXTREMES]), ("Least certain", order[::-1][:_EXTREMES])):
        items = []
        for place, pixels in zip(places, _read(measured, measured.queries, places), strict=True):
            name = _name(measured, measured.queries, place)
            items.append((picture(pixels, f"{title.lower()}: {name}"), f"{name}, {score[place].item():.2f}"))
        parts.append(section(title, pictures(items), level=4))
    correct = measured.figures["trained"].correct
    if correct is not None:
        half = most_certain_half(correct, score)
        rows = [
            ["Most certain half", Share(half["top1"], half["standard_error"])],
            ["All images", Share(half["whole_top1"], half["whole_standard_error"])],
            ["Difference", Difference(half["difference"], half["difference_standard_error"])],
        ]
        parts.append(table("Are certain images recognised better?", ["Images", "kNN top-1, %"], rows))
    text = "Under each image: its mean log-variance (natural log); the higher, the less certain the network is."
    return section("Most and least certain images", paragraph(text), *parts, level=3)


def show_views(run: Run) -> Html:
    """Some images and two augmented views of each."""
    measured = run.measured
    viewed, rows = measured.viewed.tolist(), []
    first, second = measured.views.numpy()
    for place, pixels, *views in zip(viewed, _read(measured, measured.queries, viewed), first, second, strict=True):
        name = _name(measured, measured.queries, place)
        rows.append(
            [
                pictures([(picture(pixels, f"image: {name}"), name)]),
                *(picture(view, f"view {number} of {name}") for number, view in enumerate(views, 1)),
            ]
        )
    text = "What training sees: the network learns that both views show the same image."
    grid = table("Images and their views", ["Image", "View 1", "View 2"], rows)
    return section("Augmented views", paragraph(text), grid, level=3)
