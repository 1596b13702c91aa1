"""Who may import whom, read from the source."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGINE = {"vssl.engine", "vssl.evaluation", "vssl.engine.checkpoint", "vssl.engine.metrics"}
FOLDERS = {"pipelines", "vssl", "tools", "tests"}
OPTIONAL = {"ffcv", "nvidia.dali", "tensorboard", "torch.utils.tensorboard"}


def source_files(root: Path) -> dict[str, Path]:
    """The project's modules by dotted name; a package bears its folder's."""
    paths = [*root.glob("*.py"), *(path for folder in sorted(FOLDERS) for path in root.glob(f"{folder}/**/*.py"))]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def programs(root: Path) -> set[str]:
    """Names under which train.py and the tools could be imported; a tool finds its neighbours without ``tools.``."""
    return {"tools"} | {path.stem for path in [*root.glob("*.py"), *root.glob("tools/*.py")]}


def walk(tree: ast.AST, *, at_import: bool) -> Iterator[ast.AST]:
    """All nodes, or only what runs when the module is imported: no function's body, nothing under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_for_types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if not (at_import and (is_function or is_for_types)):
            yield node
            yield from walk(node, at_import=at_import)


def imports(module: str, path: Path, *, at_import: bool) -> set[str]:
    """Dotted names a module imports; ``from a import b`` gives a and a.b, for b may be a module."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    names = set()
    for node in walk(ast.parse(path.read_text(), str(path)), at_import=at_import):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, node.module] if node.module else parents)
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def offences(root: Path, importers: set[str], forbidden: set[str], *, at_import: bool = False) -> list[str]:
    """'module imports name' for every import of a ``forbidden`` package by one of ``importers``."""
    return [
        f"{module} imports {name}"
        for module, path in source_files(root).items()
        if within(module, importers)
        for name in sorted(imports(module, path, at_import=at_import))
        if within(name, forbidden)
    ]


def shadows(root: Path) -> list[str]:
    """Modules that a program would import in place of the standard library's."""
    candidates = [*root.glob("*.py"), *(path.parent for path in root.glob("*/__init__.py")), *root.glob("tools/*.py")]
    return [path.relative_to(root).as_posix() for path in candidates if path.stem in sys.stdlib_module_names]


@pytest.mark.parametrize(
    ("importer", "forbidden"),
    [
        ("pipelines", {"vssl"}),
        ("vssl.methods", {"pipelines", "vssl.models", "vssl.optim"} | ENGINE),
        ("vssl.models", ENGINE),
        ("vssl.optim", ENGINE),
    ],
)
def test_imports_go_one_way(importer: str, forbidden: set[str]) -> None:
    assert offences(ROOT, {importer}, forbidden) == []


def test_nobody_imports_a_program() -> None:
    assert offences(ROOT, FOLDERS | programs(ROOT), programs(ROOT)) == []


def test_optional_packages_are_imported_at_use() -> None:
    assert offences(ROOT, FOLDERS | programs(ROOT), OPTIONAL, at_import=True) == []


def test_no_module_hides_the_standard_library() -> None:
    assert shadows(ROOT) == []


def test_offences_are_found(tmp_path: Path) -> None:
    sources = {
        "profile.py": "",
        "pipelines/__init__.py": "from . import convert",
        "pipelines/convert.py": "def f():\n    import vssl.engine as engine\n    import ffcv",
        "pipelines/loader.py": "try:\n    from nvidia import dali\nexcept ImportError:\n    pass",
        "vssl/objectives/byol.py": "from .. import models\nfrom ..models.heads import Projector\nimport vssl_like",
        "tools/convert.py": "if TYPE_CHECKING:\n    import ffcv",
        "tools/compare.py": "import convert",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)

    assert offences(tmp_path, {"pipelines"}, {"vssl"}) == ["pipelines.convert imports vssl.engine"]
    assert offences(tmp_path, {"vssl.methods"}, {"vssl.models"}) == [
        "vssl.methods.byol imports vssl.models",
        "vssl.methods.byol imports vssl.models.heads",
        "vssl.methods.byol imports vssl.models.heads.Projector",
    ]
    assert offences(tmp_path, FOLDERS, programs(tmp_path)) == ["tools.compare imports convert"]
    assert offences(tmp_path, FOLDERS, OPTIONAL, at_import=True) == ["pipelines.loader imports nvidia.dali"]
    assert shadows(tmp_path) == ["profile.py"]
