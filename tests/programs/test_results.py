"""Published figures name the commit that produced them; files are written completely or not at all."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from pipelines.errors import UserError
from pipelines.files import check_writable, write_json
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
