"""ImageNet-100: the subset of ImageNet-1k of Tian, Krishnan, Isola: Contrastive Multiview Coding, arXiv 1906.05849."""

import logging
from pathlib import Path

from pipelines.errors import UserError
from pipelines.sources import parquet
from pipelines.sources.base import Source, existing_folder
from pipelines.sources.image_folders import class_folders, first_of, list_folder

__all__ = ["IMAGENET100", "load"]

logger = logging.getLogger(__name__)

# WordNet ids, sorted: the place is the class index.
_IDS = """
    n01558993 n01692333 n01729322 n01735189 n01749939 n01773797 n01820546 n01855672 n01978455 n01980166 n01983481
    n02009229 n02018207 n02085620 n02086240 n02086910 n02087046 n02089867 n02089973 n02090622 n02091831 n02093428
    n02099849 n02100583 n02104029 n02105505 n02106550 n02107142 n02108089 n02109047 n02113799 n02113978 n02114855
    n02116738 n02119022 n02123045 n02138441 n02172182 n02231487 n02259212 n02326432 n02396427 n02483362 n02488291
    n02701002 n02788148 n02804414 n02859443 n02869837 n02877765 n02974003 n03017168 n03032252 n03062245 n03085013
    n03259280 n03379051 n03424325 n03492542 n03494278 n03530642 n03584829 n03594734 n03637318 n03642806 n03764736
    n03775546 n03777754 n03785016 n03787032 n03794056 n03837869 n03891251 n03903868 n03930630 n03947888 n04026417
    n04067472 n04099969 n04111531 n04127249 n04136333 n04229816 n04238763 n04336792 n04418357 n04429376 n04435653
    n04485082 n04493381 n04517823 n04589890 n04592741 n07714571 n07715103 n07753275 n07831146 n07836838 n13037406
    n13040303
"""
IMAGENET100 = tuple(_IDS.split())


def load(dataset: str, source: Path | None) -> Source:
    """The 100 classes from an ImageNet-1k tree, ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``; or those of Kaggle's
    ImageNet-100, ``train.X1/<wnid>/*.JPEG`` and so on, and ``val.X/<wnid>/*.JPEG``; or those of Parquet files.
    """
    root = existing_folder(dataset, source)
    if parquet.is_snapshot(root):
        return parquet.read_snapshot(root, 100)
    folders = {split: _folders(root, split) for split in ("train", "val")}
    if not folders["train"]:
        raise UserError(f"{root}: no train/ folder in it")
    classes = IMAGENET100 if folders["train"] == [root / "train"] else _kaggle_classes(root, folders["train"])
    splits = {}
    for split, places in folders.items():
        if not places:
            logger.warning(
                "warning: %s: no %s/ folder; without --val-fraction there will be no evaluation images", root, split
            )
            continue
        missing = [name for name in classes if not any((place / name).is_dir() for place in places)]
        if missing and not any(list_folder(place)[0] for place in places):
            raise UserError(
                f"{places[0]}: has no class folders; ImageNet's {split} images come unsorted: move each into the "
                "folder of its class (the devkit's ground truth or valprep.sh says which)"
            )
        if missing:
            raise UserError(f"{places[0]}: {len(missing)} of the 100 classes are missing, the first is {missing[0]}")
        splits[split] = class_folders(root, places, classes)
    return Source(classes, splits)


def _folders(root: Path, split: str) -> list[Path]:
    """The folders that hold a split's class folders: ``train``, or Kaggle's ``train.X1``, ``train.X2``, ..."""
    names = list_folder(root)[0]
    return [root / name for name in ([split] if split in names else names) if name.partition(".X")[0] == split]


def _kaggle_classes(root: Path, folders: list[Path]) -> tuple[str, ...]:
    """Kaggle's ImageNet-100 has its own 100 classes, which ``Labels.json`` lists."""
    classes = tuple(sorted({name for folder in folders for name in list_folder(folder)[0]}))
    if len(classes) != 100:
        raise UserError(
            f"{root}: {first_of([f'{folder.name}/' for folder in folders])} hold {len(classes)} classes, not 100"
        )
    if classes != IMAGENET100:
        logger.warning(
            "note: %s: its 100 classes are not those of arXiv 1906.05849; accuracies cannot be compared", root
        )
    return classes
