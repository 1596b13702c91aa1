"""All pixels of a split in one array, which is loaded into device memory as it is."""

from pathlib import Path

from pipelines.formats.protocol import Reader
from pipelines.formats.resident.format import Writer, file_names, iter_samples, read_labels_and_sizes

__all__ = ["Writer", "file_names", "find_loader", "iter_samples", "open_reader", "read_labels_and_sizes"]

# Reader and loader are imported only when needed: a conversion does not need torch.


def open_reader(folder: Path, split: str) -> Reader:
    """See ``protocol.Format``."""
    from pipelines.formats.resident.reader import ArrayReader

    return ArrayReader(folder, split)


def find_loader() -> type:
    """See ``protocol.Format``."""
    from pipelines.formats.resident.loader import ResidentLoader

    return ResidentLoader
