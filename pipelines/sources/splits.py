"""Names of folders and files that mean a split of a data set."""

import re

__all__ = ["bare_split_of", "split_of", "without_split"]

_WORDS = {
    "train": ("train", "training"),
    "val": ("validation", "val", "valid", "validate", "dev"),
    "test": ("test", "testing"),
}
_SPLITS = {word: split for split, words in _WORDS.items() for word in words}


def split_of(name: str) -> str | None:
    """train, val or test: what the first word that means a split says, in any case; None: there is none."""
    return next((_SPLITS[word] for word in _words(name) if word in _SPLITS), None)


def bare_split_of(name: str) -> str | None:
    """``split_of`` for a name that is such a word alone, perhaps with ``set`` or a year (train2017, test_set)."""
    words = [word for word in _words(name) if word not in ("set", "data", "images")]
    return _SPLITS.get(words[0]) if len(words) == 1 else None


def without_split(name: str) -> str:
    """What remains of a name without the first word that means a split: seg for seg_train."""
    word = next((word for word in _words(name) if word in _SPLITS), "")
    return name.lower().replace(word, "", 1).strip("_-. ")


def _words(name: str) -> list[str]:
    return [word for word in re.split("[^a-z]+", name.lower()) if word]
