"""scikit-learn's 1,797 digits of 8 x 8 pixels (UCI ML hand-written digits): 1,500 to train, 297 to validate."""

from pathlib import Path

import numpy as np

from pipelines.errors import UserError
from pipelines.sources.base import Source, from_arrays

__all__ = ["load"]


def load(dataset: str, source: Path | None) -> Source:
    """See ``base.SourceModule``."""
    if source is not None:
        raise UserError(f"--dataset {dataset} is built in and takes no --source")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(pixels[..., None], 3, axis=3)
    labels = digits.target.astype(np.int64)
    train, val = train_test_split(np.arange(len(labels)), test_size=297, stratify=labels, random_state=0)
    splits = {"train": np.sort(train), "val": np.sort(val)}
    classes = tuple(str(digit) for digit in range(10))
    return Source(classes, {split: from_arrays(split, pixels[rows], labels[rows]) for split, rows in splits.items()})
