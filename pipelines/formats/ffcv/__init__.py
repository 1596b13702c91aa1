"""The format of ffcv (https://ffcv.io): one .beton file per split."""

from pathlib import Path

from pipelines.formats.ffcv.format import Writer, file_names, iter_samples, read_labels_and_sizes
from pipelines.formats.protocol import Reader

__all__ = ["Writer", "file_names", "find_loader", "iter_samples", "open_reader", "read_labels_and_sizes"]

# Reader and loader are imported only when needed: a conversion does not need torch.


def open_reader(folder: Path, split: str) -> Reader:
    """See ``protocol.Format``."""
    from pipelines.formats.ffcv.reader import BetonReader

    return BetonReader(folder, split)


def find_loader() -> type:
    """See ``protocol.Format``."""
    from pipelines.formats.ffcv.loader import FfcvLoader

    return FfcvLoader
