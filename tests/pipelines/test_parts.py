"""Names that lead to a table's part or to one of the user's own, and what a wrong name answers."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.parts import find_part, is_own
from pipelines.sources import load_source

ROOT = Path(__file__).resolve().parents[2]
TABLE = {"good": "pipelines.errors:UserError", "call": "pipelines.errors:run_command"}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of the user's, in which the program runs and whose modules it has not yet imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name, module in sys.modules.items() if str(tmp_path) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def test_a_name_is_a_tables_or_a_place_in_the_users_code(own):
    (own / "own_package").mkdir()
    (own / "own_package/part.py").write_text("class Mine(Exception): ...")
    assert find_part("key", "good", TABLE, Exception) is UserError
    assert find_part("key", "own_package.part:Mine", TABLE, Exception).__name__ == "Mine"
    assert find_part("key", "pathlib:Path", TABLE) is Path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("goood", "key must be good or call or package.module:NAME, not 'goood'"),
        ("own parts:x", "not 'own parts:x'"),
        ("absent:Mine", "key=absent:Mine: there is no module absent, neither in the current directory nor installed"),
        ("own_module.deep:Mine", "there is no module own_module.deep, neither"),
        ("own_needs:Mine", "key=own_needs:Mine: own_needs imports absent_library, which is not installed"),
        ("own_broken:Mine", "key=own_broken:Mine: own_broken cannot be imported: ZeroDivisionError: division by zero"),
        ("own_syntax:Mine", "own_syntax cannot be imported: SyntaxError: '(' was never closed"),
        ("own_module:Mime", "own_module has no Mime; did you mean own_module:Mine?"),
        ("own_module:Other", "key=own_module:Other: Other is not a subclass of builtins.Exception"),
        ("own_module:number", "number is not a subclass of builtins.Exception"),
    ],
)
def test_each_mistake_is_one_clear_line(own, name, message):
    (own / "own_module.py").write_text("class Mine(Exception): ...\nclass Other: ...\nnumber = 3")
    (own / "own_needs.py").write_text("import absent_library")
    (own / "own_broken.py").write_text("1 / 0")
    (own / "own_syntax.py").write_text("print(")
    with pytest.raises(UserError) as error:
        find_part("key", name, TABLE, Exception)
    assert message in str(error.value)


def test_without_a_class_to_be_of_a_part_must_be_callable(own):
    (own / "own_number.py").write_text("number = 3")
    with pytest.raises(UserError, match="own_number:number: number is 3, which cannot be called"):
        find_part("key", "own_number:number", {})


@pytest.mark.parametrize("name", ["a:b", "a.b_2:C", "ü:ä"])
def test_the_form_of_an_own_place(name):
    assert is_own(name)


@pytest.mark.parametrize("name", ["", "a", "a:", ":b", "a.:b", "a:b.c", "1:b", "a b:c", "timm:vit-b", None, ["a:b"]])
def test_what_has_another_form(name):
    assert not is_own(name)


SOURCE = """
import numpy as np
from pipelines.sources.base import Source, from_arrays

def plates(dataset, source):
    pixels = np.full((4, 8, 8, 3), 7, np.uint8)
    return Source(("dark",), {"train": from_arrays("train", pixels, np.zeros(4, np.int64))})
"""


def test_convert_packs_a_source_of_the_users(own):
    (own / "own_source.py").write_text(SOURCE)
    assert load_source("own_source:plates").classes == ("dark",)
    command = [sys.executable, ROOT / "tools/convert.py", "--dataset", "own_source:plates", "--format", "resident"]
    done = subprocess.run([*command, "--workers", "1"], capture_output=True, text=True, timeout=100)
    assert "data/own_source-plates-resident: own_source:plates as resident, 1 classes" in done.stdout, done.stderr
