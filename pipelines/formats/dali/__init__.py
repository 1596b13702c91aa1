"""WebDataset shards, decoded by NVIDIA DALI (https://github.com/NVIDIA/DALI) on a CPU or a GPU."""

from pathlib import Path

from pipelines.formats.dali.format import Writer, file_names, iter_samples, read_labels_and_sizes
from pipelines.formats.protocol import Reader

__all__ = ["Writer", "file_names", "find_loader", "iter_samples", "open_reader", "read_labels_and_sizes"]

# Reader and loader are imported only when needed: a conversion does not need torch.


def open_reader(folder: Path, split: str) -> Reader:
    """See ``protocol.Format``."""
    from pipelines.formats.dali.reader import ShardReader

    return ShardReader(folder, split)


def find_loader() -> type:
    """See ``protocol.Format``."""
    from pipelines.formats.dali.loader import DaliLoader

    return DaliLoader
