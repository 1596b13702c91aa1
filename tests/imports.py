"""Who imports whom: ``python tests/imports.py ROOT [PACKAGE ...]`` prints, as JSON, what happens when each module under
ROOT is the first of the project's that an interpreter imports.

PACKAGEs are imported beforehand, once: every module then starts in a fork of that process, which costs milliseconds
where an interpreter that imports torch costs seconds. Packages that not every machine has cannot be imported at all.
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
OPTIONAL = ("ffcv", "nvidia.dali", "timm", "tensorboard", "torch.utils.tensorboard")


def module_names(root: Path) -> list[str]:
    """The project's modules by dotted name; a package bears its folder's. Without tests and whatever is not Python."""
    paths = [*root.glob("*.py"), *(path for folder in FOLDERS for path in root.glob(f"{folder}/**/*.py"))]
    return sorted(".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in paths)


def record(module: str) -> dict:
    """Import ``module``; the imports on the way as [importer, imported], and the last line of an error, or null."""
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
        # "from a import b" imports the module a.b if there is one, and else something of a.
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
            os._exit(0)  # whatever happened, the rest of the program is the parent's
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
    assert not early, f"{early} came with {packages}: nothing could be said about the project's own modules"
    sys.modules.update(dict.fromkeys(OPTIONAL))  # None: "import" raises ModuleNotFoundError
    gc.freeze()  # no collection in a fork need touch, and thereby copy, what all share
    json.dump({module: record_in_fork(module) for module in module_names(root)}, sys.stdout)


if __name__ == "__main__":
    main()
