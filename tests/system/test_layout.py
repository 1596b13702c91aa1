"""Which module may import which; the imports are recorded while Python imports (see imports.py)."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from support.imports import FOLDERS, OPTIONAL, module_names

ROOT = Path(__file__).resolve().parents[2]

# Third-party packages that most modules import.
COMMON = ("torch", "torchvision.transforms.v2", "torch.utils.data", "numpy", "PIL.Image", "tqdm", "yaml")

# From the bottom up: a module imports from its own tier and from those below it.
TIERS = (
    ("pipelines",),
    ("vssl.config", "vssl.config_arguments", "vssl.collectives", "vssl.charts"),
    ("vssl.runtime",),
    ("vssl.models", "vssl.optim"),
    ("vssl.methods",),
    ("vssl.evaluation", "vssl.loggers"),
    ("vssl.engine",),
    ("vssl.inference",),
    ("vssl.profile", "vssl.report"),
    ("vssl.commands",),
    ("tools.bench",),
    ("tools", "train", "vssl.__main__"),
)
PACKAGES = {"vssl"}  # contains tiers but belongs to none
PROGRAMS = len(TIERS) - 1
IN_A_FUNCTION = r"^[ \t]+(from|import) (vssl|tools)\b"  # not seen when the module is imported

Edge = tuple[str, str]  # importer, imported


def record(root: Path, *packages: str) -> dict[str, dict]:
    """By module: ``imports``, a list of [importer, imported], and ``error``."""
    command = [sys.executable, ROOT / "tests/support/imports.py", root, *packages]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def edges_of(records: dict[str, dict]) -> set[Edge]:
    """All imports made by the project's own modules."""
    return {(a, b) for found in records.values() for a, b in found["imports"] if a in records and a != b}


def circle(edges: Iterable[Edge]) -> list[str]:
    """The modules of one import cycle in order, the first again at the end; empty if there is none."""
    graph = TopologicalSorter()
    for importer, imported in edges:
        graph.add(importer, imported)
    try:
        graph.prepare()
    except CycleError as error:
        return error.args[1]
    return []


def within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def tier(module: str) -> int | None:
    """The tier that names the module, or the nearest package around it."""
    named = [(len(name), level) for level, names in enumerate(TIERS) for name in names if within(module, [name])]
    return max(named)[1] if named else None


def upward(edges: Iterable[Edge]) -> list[str]:
    """'module imports module' where the second is in a higher tier, or is a program."""
    wrong = []
    for importer, imported in sorted(edges):
        low, high = tier(importer), tier(imported)
        if low is not None and high is not None and (high > low or (high == PROGRAMS and imported != "tools")):
            wrong.append(f"{importer} imports {imported}")
    return wrong


def found_in(root: Path, pattern: str, folders: Iterable[str] = FOLDERS) -> set[str]:
    """The Python files in which a line matches."""
    files = [path for folder in folders for path in root.glob(f"{folder}/**/*.py")]
    return {path.relative_to(root).as_posix() for path in files if re.search(pattern, path.read_text(), re.MULTILINE)}


@pytest.fixture(scope="module")
def records() -> dict[str, dict]:
    return record(ROOT, *COMMON)


@pytest.fixture(scope="module")
def edges(records: dict[str, dict]) -> set[Edge]:
    return edges_of(records)


def test_each_module_can_be_the_first_and_needs_no_optional_package(records: dict[str, dict]) -> None:
    assert {module: found["error"] for module, found in records.items() if found["error"]} == {}


def test_optional_packages_are_imported_at_use(edges: set[Edge]) -> None:
    assert [edge for edge in sorted(edges) if within(edge[1], OPTIONAL)] == []


def test_no_circle(edges: set[Edge]) -> None:
    assert circle(edges) == []


def test_imports_go_down(edges: set[Edge]) -> None:
    assert upward(edges) == []


def test_every_module_has_a_tier() -> None:
    assert [module for module in module_names(ROOT) if tier(module) is None and module not in PACKAGES] == []


def test_no_import_of_the_project_is_hidden_in_a_function() -> None:
    assert found_in(ROOT, "TYPE_CHECKING") == set()
    assert found_in(ROOT, r"^\s*(from|import) (vssl|tools)\b", ["pipelines"]) == set()
    assert found_in(ROOT, IN_A_FUNCTION, ["vssl"]) <= {"vssl/__init__.py"}  # its ``load``, for users of the package


def test_reading_a_config_loads_neither_networks_nor_loaders() -> None:
    program = "import sys, vssl.config; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    loaded = answer.stdout.split()
    assert [module for module in loaded if (tier(module) or 0) > tier("vssl.config")] == []
    assert [module for module in loaded if within(module, ("pipelines.loading", "torch", "nvidia"))] == []


def test_no_module_hides_the_standard_library() -> None:
    names = [*ROOT.glob("*.py"), *(path.parent for path in ROOT.glob("*/__init__.py")), *ROOT.glob("tools/*.py")]
    assert [path for path in names if path.stem in sys.stdlib_module_names] == []


def test_a_method_is_named_only_in_its_file_and_in_the_table() -> None:
    assert found_in(ROOT, "moco_v3") == {"vssl/methods/__init__.py", "vssl/methods/moco_v3.py"}


def test_circles_and_upward_imports_are_found(tmp_path: Path) -> None:
    sources = {
        "train.py": "import tools.convert",
        "pipelines/__init__.py": "",
        "pipelines/batch.py": "import pipelines.images",
        "pipelines/images.py": "import pipelines.batch",
        "pipelines/loader.py": "from vssl import config, optim\ntry:\n    import ffcv\nexcept ImportError:\n    pass",
        "vssl/__init__.py": "",
        "vssl/config.py": "import json",
        "vssl/optim.py": "def late():\n    import vssl.methods",
        "vssl/models/__init__.py": "from .heads import Head",
        "vssl/models/heads.py": "from .. import methods, optim\nfrom ..methods.byol import loss\nclass Head: ...",
        "vssl/methods/__init__.py": "",
        "vssl/methods/byol.py": "def loss(): ...",
        "tools/__init__.py": "",
        "tools/convert.py": "from tools import bench",
        "tools/bench/__init__.py": "from vssl.config import json\nimport timm",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    records = record(tmp_path)
    edges = edges_of(records)
    assert set(circle(edges)) == {"pipelines.batch", "pipelines.images"}
    assert circle(edges - {("pipelines.batch", "pipelines.images")}) == []
    assert upward(edges) == [
        "pipelines.loader imports vssl.config",
        "pipelines.loader imports vssl.optim",
        "train imports tools.convert",
        "vssl.models.heads imports vssl.methods",
        "vssl.models.heads imports vssl.methods.byol",
    ]
    assert [edge for edge in sorted(edges) if within(edge[1], OPTIONAL)] == [
        ("pipelines.loader", "ffcv"),
        ("tools.bench", "timm"),
    ]
    assert {module for module, found in records.items() if found["error"]} == {"tools.bench", "tools.convert", "train"}
    assert found_in(tmp_path, IN_A_FUNCTION, ["vssl"]) == {"vssl/optim.py"}
