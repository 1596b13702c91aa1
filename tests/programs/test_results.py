"""Published figures name the commit that produced them, and the docs say which file they come from."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipelines.errors import UserError
from pipelines.files import check_writable, write_json
from support.programs import run_program
from tools.charts_of_docs import CHARTS, join_arms
from vssl.commands.results import check_outputs, check_published, report_head
from vssl.engine.environment import CHECKOUT, read_commit


def git(root, *words):
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(["git", *who, *words], cwd=root, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A git checkout of one commit: ``code.py``, ``results/old.json``, ``docs/page.md``."""
    root = tmp_path / "checkout"
    for name in ("code.py", "results/old.json", "docs/page.md", ".gitignore"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("ignored\n__pycache__/\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "all")
    return root


def test_a_clean_checkout_has_its_commit(checkout):
    assert read_commit(checkout) == (git(checkout, "rev-parse", "HEAD"), None)
    check_published(checkout / "results" / "new.json", checkout)


@pytest.mark.parametrize("name", ["code.py", "new.py"])
def test_a_changed_or_an_untracked_file_makes_it_dirty(checkout, name):
    (checkout / name).write_text("one")
    commit, first = read_commit(checkout)
    assert commit == git(checkout, "rev-parse", "HEAD") and len(first) == 64
    (checkout / name).write_text("two")
    second = read_commit(checkout).dirty
    (checkout / name).write_text("one")
    assert second != first == read_commit(checkout).dirty


def test_staged_changes_count_too(checkout):
    (checkout / "code.py").write_text("changed")
    dirty = read_commit(checkout).dirty
    git(checkout, "add", "code.py")
    assert dirty == read_commit(checkout).dirty is not None


def test_links_and_names_of_untracked_files_count(checkout):
    (checkout / "link").symlink_to("nowhere")
    first = read_commit(checkout).dirty
    (checkout / "link").rename(checkout / "other")
    assert first != read_commit(checkout).dirty is not None


def test_untracked_data_is_not_read_completely(checkout):
    digests = []
    for size in (2**40, 2**41):  # sparse, and far too large to read
        with open(checkout / "data.beton", "wb") as file:
            file.truncate(size)
        digests.append(read_commit(checkout).dirty)
    assert None not in digests and digests[0] != digests[1]


def test_results_docs_and_what_git_ignores_do_not_make_it_dirty(checkout):
    for name in ("results/old.json", "results/new.json", "docs/page.md", "docs/new.png", "ignored"):
        (checkout / name).write_text("changed")
    assert read_commit(checkout).dirty is None


def test_no_commit_outside_a_checkout_of_its_own(checkout, tmp_path):
    inner = checkout / "vendored"
    inner.mkdir()
    assert read_commit(tmp_path) == read_commit(inner) == (None, None)


def test_figures_are_not_published_from_a_dirty_checkout(checkout):
    (checkout / "code.py").write_text("changed")
    for path in (checkout / "results" / "new.json", checkout / "results" / "gpu" / "new.json"):
        with pytest.raises(UserError, match="results/ and docs/ are not committed"):
            check_published(path, checkout)
    check_published(checkout / "elsewhere.json", checkout)
    check_published(checkout / "results" / ".." / "elsewhere.json", checkout)


def test_figures_are_not_published_from_outside_a_checkout(tmp_path):
    with pytest.raises(UserError, match="is not a git checkout"):
        check_published(tmp_path / "results" / "new.json", tmp_path)


def test_a_program_refuses_before_it_measures(checkout):
    for folder in ("pipelines", "tools", "vssl"):
        shutil.copytree(CHECKOUT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__"))

    command = [sys.executable, "tools/compare_step.py", "-c", "absent.yaml", "--json", "results/a.json"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: results/a.json: figures below results/")  # not: no absent.yaml


def test_a_report_begins_with_command_and_commit(monkeypatch):
    monkeypatch.setattr("sys.argv", ["tools/throughput.py", "-c", "a b.yaml"])
    head = report_head(torch.device("cpu"))
    assert head["command"] == "python tools/throughput.py -c 'a b.yaml'"
    assert head["schema"] == 1
    commit = read_commit()
    assert (head["environment"]["commit"], head["environment"]["dirty"]) == commit


# Files


def test_json_is_indented_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"a": [1]})
    text = (tmp_path / "new" / "a.json").read_text()
    assert json.loads(text) == {"a": [1]} and text.startswith('{\n  "a"') and text.endswith("}\n")
    assert os.listdir(tmp_path / "new") == ["a.json"]


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    (tmp_path / "old.json").write_text("old")
    check_outputs(tmp_path / "old.json", tmp_path / "no" / "such" / "folder" / "a.png", None)
    assert os.listdir(tmp_path) == ["old.json"] and (tmp_path / "old.json").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "reason"),
    [(".", "it is a directory"), ("file/a.json", "Not a directory"), ("file/b/a.json", "Not a directory")],
)
def test_a_place_that_cannot_be_written_is_refused(tmp_path, name, reason):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"cannot write .*: {reason}"):
        check_writable(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="Permission denied"):
        check_writable(tmp_path / "locked" / "a.json")


# The docs

PAGES = [*sorted(Path("docs").rglob("*.md")), *map(Path, ("README.md", "CONTRIBUTING.md", "results/README.md"))]
BENCHMARKS = [page for page in sorted(Path("docs/benchmarks").glob("*.md")) if page.name != "README.md"]
RESULTS = sorted(Path("results").rglob("*.json"))
PICTURES = {"report.png", "report-unlabelled.png", "views.png"}  # of runs and images, not of figures in results/


def links(page):
    """The files that a page links to, relative to the checkout, each with the part behind #."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in link:
            path, _, heading = link.partition("#")
            yield Path(os.path.relpath(page.parent / path if path else page)), heading


def headings(page):
    """As GitHub names them in links."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_of_the_docs_lead_somewhere(page):
    for path, heading in links(page):
        assert path.exists(), path
        assert not heading or heading in headings(path), f"{path}#{heading}"


def test_every_result_is_in_the_index_beside_the_page_that_explains_it():
    indexed = []
    for row in re.findall(r"^\| .*\.json.*$", Path("results/README.md").read_text(), re.MULTILINE):
        page, *files = [Path(os.path.normpath(Path("results") / link)) for link in re.findall(r"\]\(([^)]+)\)", row)]
        assert files == [path for path, _ in links(page) if path.suffix == ".json"]
        indexed += files
    assert sorted(indexed) == [path for path in RESULTS if path.parts[1] != "gpu"]


@pytest.mark.parametrize("page", BENCHMARKS, ids=lambda page: page.stem)
def test_a_benchmark_names_its_claim_its_facts_and_its_files(page):
    text = page.read_text()
    assert re.search(r"-\d{4}-\d{2}-\d{2}$", page.stem) and re.match(r"# .+\n\n\*\*", text)
    assert all(f"\n- **{fact}:**" in text for fact in ("Command", "Hardware", "Commit", "Results"))
    assert any(path in RESULTS for path, _ in links(page)) or "- **Results:** No result file" in text


@pytest.mark.parametrize("folder", ["benchmarks", "decisions"])
def test_every_page_of_a_folder_is_in_its_index(folder):
    index = Path("docs", folder, "README.md")
    listed = [path for path, _ in links(index) if path.parent == index.parent]
    assert set(listed) == set(index.parent.glob("*.md")) - {index}


def test_every_chart_of_the_docs_is_drawn_from_the_results(tmp_path):
    assert {path.name for path in Path("docs").rglob("*.png")} == set(CHARTS) | PICTURES
    done = run_program("tools/charts_of_docs.py", "--out", tmp_path)
    assert done.returncode == 0 and {path.name for path in tmp_path.iterdir()} == set(CHARTS)
    for name in CHARTS:
        assert Image.open(tmp_path / name).size == Image.open(Path("docs") / name).size


def test_an_arm_of_several_reports_has_the_mean_and_the_error_of_all_its_seeds():
    runs = [{"seed": seed, "knn_top1": value} for seed, value in enumerate((0.5, 0.6, 0.4))]
    joined = join_arms([{"config": {"a": 1}, "runs": runs[:1]}, {"config": {"a": 2}, "runs": runs[1:]}])
    assert joined["runs"] == runs and joined["config"] == {"a": 1}
    assert joined["mean"]["knn_top1"] == pytest.approx(0.5) and joined["mean"]["linear_top1"] is None
    assert joined["standard_error"]["knn_top1"] == pytest.approx(0.1 / 3**0.5)
