"""The page of tools/report.py: complete in itself, described for those who cannot see it, its figures evaluation's."""

import dataclasses
import itertools
import json
import math
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch

from pipelines.convert import convert
from support.loading import photographs
from support.programs import run_program
from support.training import finish, small_config
from vssl.report.measure import Figures
from vssl.report.verdict import describe_verdict, difference, share

VOID = {"meta", "img", "source"}
SOURCES = ("src", "srcset", "href", "action", "data")


class Page(HTMLParser):
    """A parsed page: elements as (name, attributes), the rows of each table by caption, and the text."""

    def __init__(self, content):
        super().__init__()
        self.elements, self.tables, self.text, self._open = [], {}, "", []
        self.feed(content)
        assert self._open == []
        self.text = " ".join(self.text.split())

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self._open.append(name)
        if name == "caption":
            self._caption = ""
        elif name == "tr":
            self.tables.setdefault(self._caption, []).append([])
        elif name in ("td", "th"):
            self.tables[self._caption][-1].append("")

    def handle_endtag(self, name):
        assert self._open.pop() == name

    def handle_data(self, data):
        self.text += data
        if "caption" in self._open:
            self._caption += data
        elif {"td", "th"} & set(self._open):
            self.tables[self._caption][-1][-1] += data

    def all(self, name):
        return [attributes for found, attributes in self.elements if found == name]


def report(*words):
    """The page of ``tools/report.py WORDS --out OUT``, the last of ``words`` being OUT, and what was printed."""
    *runs, out = words
    done = run_program("tools/report.py", *runs, "--out", out)
    assert done.returncode == 0, done.stderr
    return Page(out.read_text()), done.stdout


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    return finish(small_config(digits, tmp_path_factory.mktemp("runs") / "vssl", "train.epochs=1", "eval.every=1"))


@pytest.fixture(scope="module")
def untrained(digits, run):
    """A run that learned nothing: only its BatchNorm statistics changed."""
    return finish(small_config(digits, run.with_name("untrained"), "train.epochs=4", "optim.lr=0"))


@pytest.fixture(scope="module")
def both(run, untrained):
    """The page that compares the two."""
    return report(run, untrained, run.with_name("both.html"))


@pytest.fixture(scope="module")
def unlabelled(digits, tmp_path_factory):
    """The page of a BYOL run on photographs without labels and without val."""
    root = tmp_path_factory.mktemp("photographs")
    (root / "source").mkdir()
    for number, image in enumerate(photographs(43, 0)):
        image.save(root / "source" / f"{number}.jpg")
    convert("folder", root / "source", root / "packed", workers=1)
    changes = ("train.epochs=1", "data.batch_size=8", "data.limit=0", "data.image_size=16", "method.name=byol")
    return report(finish(small_config(root / "packed", root / "run", *changes)), root / "page.html")[0]


@pytest.fixture(params=["both", "unlabelled"])
def any_page(request):
    page = request.getfixturevalue(request.param)
    return page[0] if isinstance(page, tuple) else page


def test_the_page_needs_nothing_else(any_page):
    sources = [value for _, found in any_page.elements for key, value in found.items() if key in SOURCES]
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert any_page.all("script") == any_page.all("link") == [] and "url(" not in any_page.text
    assert not re.search("https?://|@import", any_page.text)


def test_every_picture_is_described_and_every_table_named(any_page):
    images = any_page.all("img")
    assert len(images) > 40 and all(image["alt"].strip() for image in images)
    assert any_page.tables.keys() == {box["aria-label"] for box in any_page.all("div") if "aria-label" in box}
    assert len(any_page.all("h1")) == len(any_page.all("main")) == 1 and any_page.all("html") == [{"lang": "en"}]


def test_accuracies_are_those_of_evaluate(both, run, tmp_path):
    done = run_program("tools/evaluate.py", run, "--protocol", "knn", "--json", tmp_path / "knn.json")
    assert done.returncode == 0
    knn = json.loads((tmp_path / "knn.json").read_text())
    error = math.sqrt(knn["top1"] * (1 - knn["top1"]) / knn["count"])
    row = both[0].tables["Figures of the features"][1]
    assert row[:2] == ["vssl: trained network", f"{100 * knn['top1']:.1f} ± {100 * error:.1f}"]
    assert row[5] == f"{knn['rankme']:.1f}"
    assert f"kNN recognises {row[1]} % of {knn['count']} images with the trained network" in both[1]


def test_an_untrained_run_is_no_evidence(both):
    page, printed = both
    line = next(line for line in printed.splitlines() if "untrained: " in line)
    assert "untrained: No evidence that pretraining helped: kNN recognises" in line
    assert line.split("untrained: ", 1)[1] in page.text


def test_runs_are_compared(both):
    page, _ = both
    assert [row[0] for row in page.tables["Figures of the features"][1:]] == [
        f"{run}: {features}"
        for run in ("vssl", "untrained")
        for features in (
            "trained network",
            "the same network before training",
            "raw pixels, at most 32 x 32",
        )
    ]
    assert page.tables["Config of each run"][0] == ["Key", "vssl", "untrained"]
    assert ["method.name", "vssl", "vssl"] in page.tables["Config of each run"]


def test_all_sections_are_there(both, unlabelled):
    common = ["Figures of the features", "Queries and their nearest neighbours", "Groups in the map"]
    common += ["Images and their views", "Images per second in training", "Config of each run"]
    certainty = "Are certain images recognised better?"
    assert {*common, certainty, "Values of the curve: loss (of each method's own scale)"} <= both[0].tables.keys()
    assert set(common) <= unlabelled.tables.keys()
    assert "Most certain" in both[0].text and "Most certain" not in unlabelled.text  # BYOL has no variance
    assert len(both[0].tables["Queries and their nearest neighbours"]) == 2 * (1 + 20)


def test_without_labels_views_and_ranks_are_the_evidence(unlabelled):
    rows = unlabelled.tables["Figures of the features"][1:]
    assert [row[1] for row in rows] == ["-"] * 3
    trained, untrained = rows[:2]
    assert f"of 9 augmented views, {trained[3]} % are nearest to the other view" in unlabelled.text
    assert f"effective rank (RankMe) is {trained[5]}, before training {untrained[5]}." in unlabelled.text
    assert "9 images of train looked up among 34 of train (it has 43 in train)" in unlabelled.text


def test_data_that_moved_are_named_and_can_be_given(run, digits, tmp_path):
    moved = shutil.copytree(run, tmp_path / "moved")
    config = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(config.replace(str(digits), "absent"))
    done = run_program("tools/report.py", moved, "--out", tmp_path / "r.html")
    line = f"error: {moved}: its data set is not in absent any more: give --data PACKED_DIR\n"
    assert (done.returncode, done.stderr) == (2, line)
    page, _ = report(moved, "--data", digits, tmp_path / "r.html")
    assert "297 images of val looked up among 1,500 of train" in page.text


def test_names_are_text_and_not_markup(run, tmp_path):
    named = shutil.copytree(run, tmp_path / 'one <b> & "two"')
    page, _ = report(named, tmp_path / "r.html")
    assert 'Did pretraining work? one <b> & "two"' in page.text and page.all("b") == []
    assert page.tables["Config of each run"][0] == ["Key", 'one <b> & "two"']


def test_a_run_without_checkpoint_is_refused(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints")
    done = run_program("tools/report.py", copy, "--out", tmp_path / "r.html")
    assert (done.returncode, done.stderr) == (2, f"error: {copy} holds no whole checkpoint\n")


# The verdict


def hits(count, of=1000):
    """``count`` hits, then misses."""
    return torch.arange(of) < count


def figures(trained, untrained, pixels=0, *, labelled=True, ranks=(2.0, 1.0)):
    """Figures with so many hits of 1,000; those of fewer hits are part of those of more."""
    one = Figures(None, None, hits(0), 1.0, 1.0)
    trio = {"trained": trained, "untrained": untrained, "pixels": pixels}
    if labelled:
        return {name: dataclasses.replace(one, correct=hits(count)) for name, count in trio.items()}
    ranks = itertools.chain(ranks, [1.0])
    return {name: dataclasses.replace(one, matched=hits(count), rankme=next(ranks)) for name, count in trio.items()}


@pytest.mark.parametrize(
    ("found", "start"),
    [
        (figures(500, 400, 300), "Pretraining helped: kNN recognises 50.0 ± 1.6 % of 1,000 images"),
        (
            figures(500, 400, 500),
            "Pretraining improved the network, but it is not shown to be better than raw pixels: ",
        ),
        (figures(500, 400, 600), "Pretraining improved the network, but raw pixels are better: "),
        (figures(404, 400, 300), "No evidence that pretraining helped: "),  # 4 images are 2 standard errors: not more
        (figures(405, 400, 300), "Pretraining helped: "),
        (figures(300, 400, 300), "Pretraining made the network worse: "),
        (figures(500, 400, labelled=False), "Pretraining helped: of 1,000 augmented views, 50.0 ± 1.6 % are nearest"),
        (
            figures(500, 400, labelled=False, ranks=(1.0, 2.1)),
            "Mixed evidence: views are matched better, but features use less than half of the dimensions: ",
        ),
        (figures(400, 400, labelled=False), "No evidence that pretraining helped: "),
    ],
)
def test_the_verdict_follows_from_the_figures(found, start):
    assert describe_verdict(found).startswith(start)


def test_standard_errors_by_hand():
    assert share(hits(200)) == pytest.approx((0.2, 0.4 / math.sqrt(1000)))
    one, other = torch.tensor([True, True, True, False, True]), torch.tensor([True, False, False, True, False])
    assert difference(one, other) == pytest.approx(((3 - 1) / 5, math.sqrt(3 + 1) / 5))


# In a browser


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_does_not_scroll_sideways(both, run, width):
    sync_api = pytest.importorskip("playwright.sync_api")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        view = started.new_page(viewport={"width": width, "height": 900})
        view.goto(run.with_name("both.html").as_uri())
        assert view.evaluate("document.documentElement.scrollWidth") == width
        assert view.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        started.close()
