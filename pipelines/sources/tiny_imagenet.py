"""Tiny ImageNet's validation images: ``val/images/*.JPEG``, whose classes are in ``val/val_annotations.txt``."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import UserError
from pipelines.sources.base import SourceSplit
from pipelines.sources.image_folders import from_files, list_folder, tell_ignored

__all__ = ["ANNOTATIONS", "annotated"]

ANNOTATIONS = "val_annotations.txt"


def annotated(root: Path, folder: Path, classes: Sequence[str]) -> SourceSplit:
    """The images that the annotations of ``folder`` list, in the order of their names.

    Args:
        root: images are named by their path below it.
        folder: holds ``val_annotations.txt`` (lines of tab-separated file, class and box) and ``images/``.
        classes: of train.

    Raises:
        UserError: a line is not of that form, or names a class that train does not have.
    """
    path = folder / ANNOTATIONS
    labels: dict[str, int] = {}
    place = {name: index for index, name in enumerate(classes)}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        file, _, rest = line.partition("\t")
        name = rest.split("\t")[0]
        if not name or "/" in file or file in labels:
            raise UserError(f"{path}: line {number} is not the name of another file, a tab and a class")
        if name not in place:
            raise UserError(f"{path}: line {number} has class {name!r}, which is not in train/")
        labels[file] = place[name]
    if not labels:
        raise UserError(f"{path}: lists no image")
    tell_ignored(folder / "images", [file for file in list_folder(folder / "images")[1] if file not in labels])
    files = sorted(labels)
    return from_files(root, [f"{folder}/images/{file}" for file in files], [labels[file] for file in files])
