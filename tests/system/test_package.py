"""What ``pip install .`` installs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


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


def test_every_file_that_is_not_python_is_installed(package):
    files = [path for top in ("pipelines", "vssl") for path in (ROOT / top).rglob("*") if path.is_file()]
    others = {path for path in files if path.suffix != ".py" and "__pycache__" not in path.parts}
    others |= {ROOT / "vssl/configs" / path.name for path in (ROOT / "configs").iterdir()}
    patterns = package["tool"]["setuptools"]["package-data"]
    installed = [(ROOT / name.replace(".", "/")).glob(glob) for name, globs in patterns.items() for glob in globs]
    assert others == {path for paths in installed for path in paths}


def test_requirements_are_the_dependencies_and_all_extras(package):
    project = package["project"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = [line.partition("  #")[0] for line in lines if line and line[0] != "#"]
    extras = project["optional-dependencies"]
    assert sorted(required) == sorted(
        [*project["dependencies"], *(text for texts in extras.values() for text in texts)]
    )
    assert not names(project["dependencies"]) & {"ffcv", "nvidia-dali-cuda130", "pytest"}
    assert set(extras) == {"ffcv", "dali", "dev"}
    assert names(extras["ffcv"]) == {"ffcv"} and names(extras["dali"]) == {"nvidia-dali-cuda130"}
