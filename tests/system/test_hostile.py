"""What a wrong input answers: a table of command lines, damages, and the one line that the user then reads."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from pipelines.errors import run_command
from support.hostile import Place
from support.hostile_data import PACKED, SOURCE
from support.hostile_runs import CONFIG, RUN
from support.hostile_tools import TOOLS
from support.programs import run_program
from support.training import finish, small_config

ROWS = [*CONFIG, *PACKED, *SOURCE, *RUN, *TOOLS]


# How the docs name the members of Place.
DOCUMENTED = {
    "config": "c.yaml",
    "data": "packed",
    "packed": "other",
    "photos": "photos",
    "run": "runs/a",
    "byol": "runs/b",
    "empty": "empty",
    "pipe": "pipe",
    "tmp": ".",
}


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """A finished run, of which a row gets a copy."""
    return finish(small_config(digits, tmp_path_factory.mktemp("runs") / "run", "train.epochs=1"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_wrong_input_is_one_line(row, digits, trained, tmp_path):
    if "no CUDA" in row.said and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if "embed.py" in row.command:
        pytest.importorskip("pyarrow")
    place = Place(tmp_path, digits, trained)
    if row.damage is not None:
        row.damage(place)
    words = [word.format_map(place) for word in shlex.split(row.command)]
    said = row.said.format_map(place)
    before = set(tmp_path.iterdir())

    done = run_program(*words)

    line, whole = one_line(done.stderr, Path(words[0]).name), not said.endswith("...")
    assert done.returncode == row.code
    assert line == said if whole else line.startswith(said.removesuffix("..."))
    left = {path.name for path in set(tmp_path.iterdir()) - before}
    assert row.code == 0 or left <= {"new", "w"}  # a run's directory, a comparison's folder


def one_line(printed, program):
    """What standard error says, without ``error: ``: nothing, or a line; before it only argparse's usage, and which
    checkpoints were passed over."""
    rest = re.sub(rf"\Ausage: .*?^(?={re.escape(program)}: error)", "", printed, flags=re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^passed over: .*\n", "", rest, flags=re.MULTILINE)
    if rest == "":
        return ""
    line = re.fullmatch(rf"(?:{re.escape(program)}: )?error: (.*)\n", rest)
    assert line, printed
    return line[1]


def test_there_are_many_and_no_two_alike():
    assert len(ROWS) > 100 and len({row.name for row in ROWS}) == len({row[1:] for row in ROWS}) == len(ROWS)


def test_the_docs_show_rows_of_the_table():
    text = Path("docs/reliability.md").read_text().split("## What a wrong input answers")[1].split("\n## ")[0]
    shown = [line for line in text.splitlines() if line.startswith("|")][2:]
    rows = {row.name: row for row in ROWS}
    for line in shown:
        row = rows[line.split(" | ")[0].removeprefix("| ")]
        command, said = row.command.format_map(DOCUMENTED), row.said.format_map(DOCUMENTED)
        assert line == f"| {row.name} | `{command}` | {said} |"
    assert len(shown) > 15


def test_ctrl_c_is_no_traceback(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run_command(main)
    assert (end.value.code, capsys.readouterr().err) == (130, "stopped\n")
