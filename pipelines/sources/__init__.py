"""Where images come from.

To add a source: a module here with the members of ``base.SourceModule``, and its line below.
"""

import importlib
from pathlib import Path
from typing import cast

from pipelines.errors import UserError
from pipelines.sources.base import Source, SourceModule

__all__ = ["SOURCES", "load_source"]

# Data sets by the name that --dataset gives them, and the module here that reads them.
SOURCES = {
    "digits": "digits",
    "cifar10": "cifar",
    "cifar100": "cifar",
    "in100": "imagenet100",
    "folder": "folder",
    "parquet": "parquet",
    "webdataset": "webdataset",
}


def load_source(dataset: str, source: Path | None = None) -> Source:
    """List a data set's images; files are not opened yet.

    Args:
        dataset: one of ``SOURCES``, whose module is imported now.
        source: folder or archive; cifar10 and cifar100 are downloaded if it is None, digits takes none.

    Raises:
        UserError: no such data set; the source is missing, empty, or has the wrong layout.
    """
    if dataset not in SOURCES:
        raise UserError(f"--dataset {dataset} is none of {', '.join(SOURCES)}")
    module = cast(SourceModule, importlib.import_module(f"{__name__}.{SOURCES[dataset]}"))
    return module.load(dataset, source)
