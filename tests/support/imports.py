"""Which module imports which: ``python tests/support/imports.py ROOT [PACKAGE ...]`` prints, as JSON, what happens when
each module under ROOT is the first module of the project that an interpreter imports.

PACKAGEs are imported once, beforehand. Every module is then imported in a fork of that process, which takes
milliseconds; a new interpreter that imports torch takes seconds. Optional packages are made impossible to import.
"""

import builtins
import gc
import importlib
import json
import os
import sys
import traceback
from pathlib import Path

FOLDERS = ("pipelines", "vssl", "tools")
OPTIONAL = ("ffcv", "nvidia.dali", "pyarrow", "timm", "tensorboard", "torch.utils.tensorboard")


def module_names(root: Path) -> list[str]:
    """The project's modules by dotted name; a package has its folder's name. Only Python files, without tests."""
    paths = [*root.glob("*.py"), *(path for folder in FOLDERS for path in root.glob(f"{folder}/**/*.py"))]
    return sorted(".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in paths)


def record(module: str) -> dict:
    """Import ``module``. Records all imports as [importer, imported], and the last line of an error, or null."""
    original, found = builtins.__import__, []

    def recording(name, globals=None, locals=None, fromlist=(), level=0):
        if globals:
            base = name
            if level:
                parents = globals["__package__"].split(".")
                base = ".".join([*parents[: len(parents) - level + 1], *([name] if name else [])])
            found.append((globals["__name__"], base, tuple(fromlist or ())))
        return original(name, globals, locals, fromlist, level)

    builtins.__import__ = recording
    error = None
    try:
        importlib.import_module(module)
    except BaseException as caught:
        error = traceback.format_exception_only(caught)[-1].strip()
    finally:
        builtins.__import__ = original
    pairs = set()
    for importer, base, names in found:
        # "from a import b" imports the module a.b if there is one, otherwise a name in a.
        submodules = [f"{base}.{name}" for name in names if f"{base}.{name}" in sys.modules]
        pairs |= {(importer, imported) for imported in submodules}
        if not names or len(submodules) < len(names):
            pairs.add((importer, base))
    return {"imports": sorted(pairs), "error": error}


def record_in_fork(module: str) -> dict:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(writer, "w") as file:
                json.dump(record(module), file)
        finally:
            os._exit(0)  # even after an error: only the parent runs the rest of the program
    os.close(writer)
    with os.fdopen(reader) as file:
        answer = file.read()
    os.waitpid(child, 0)
    return json.loads(answer)


def main() -> None:
    root, packages = Path(sys.argv[1]).resolve(), sys.argv[2:]
    sys.path[0] = str(root)
    for package in packages:
        importlib.import_module(package)
    early = [name for name in OPTIONAL if name in sys.modules]
    assert not early, f"{packages} imported {early}, so imports by the project's own modules would not be seen"
    sys.modules.update(dict.fromkeys(OPTIONAL))  # None: "import" raises ModuleNotFoundError
    gc.freeze()  # so that garbage collection in a fork does not touch, and thereby copy, shared memory
    json.dump({module: record_in_fork(module) for module in module_names(root)}, sys.stdout)


if __name__ == "__main__":
    main()
