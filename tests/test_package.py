"""What ``pip install .`` installs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def package():
    """The project's ``pyproject.toml`` as setuptools reads it."""
    read = pytest.importorskip("setuptools.config.pyprojecttoml").read_configuration
    return read(ROOT / "pyproject.toml", expand=True)


def names(requirements):
    return {re.match(r"[\w-]+", text)[0] for text in requirements}


def test_the_two_packages_are_installed_and_nothing_else(package):
    folders = {path.parent for top in ("pipelines", "vssl") for path in (ROOT / top).rglob("*.py")}
    expected = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(package["tool"]["setuptools"]["packages"]) == expected


def test_the_packages_need_no_file_that_is_not_python():
    files = [path for top in ("pipelines", "vssl") for path in (ROOT / top).rglob("*") if path.is_file()]
    assert {path.suffix for path in files if "__pycache__" not in path.parts} == {".py"}


def test_requirements_and_extras(package):
    project = package["project"]
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert names(project["dependencies"]) == names(lines)
    assert not names(project["dependencies"]) & {"ffcv", "nvidia-dali-cuda130", "pytest"}
    extras = {extra: names(texts) for extra, texts in project["optional-dependencies"].items()}
    assert set(extras) == {"ffcv", "dali", "dev"}
    assert extras["ffcv"] == {"ffcv"} and extras["dali"] == {"nvidia-dali-cuda130"} and "pytest" in extras["dev"]
