"""Where images come from.

To add a source: a module here with the members of ``base.SourceModule``, and its line below.
"""

from pathlib import Path

from pipelines.parts import find_part
from pipelines.sources.base import Source

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
        dataset: one of ``SOURCES``, or ``package.module:NAME``, a function of the user's with the arguments and the
            result of this one.
        source: folder or archive; cifar10 and cifar100 are downloaded if it is None, digits takes none.

    Raises:
        UserError: no such data set; the source is missing, empty, or has the wrong layout.
    """
    places = {name: f"{__name__}.{module}:load" for name, module in SOURCES.items()}
    return find_part("--dataset", dataset, places)(dataset, source)
