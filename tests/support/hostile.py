"""What the table of test_hostile.py is made of: a row, what it may damage, and how."""

import json
import os
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from pipelines.convert import convert
from support.packing import image, spoil
from support.training import save_untrained, small_config
from vssl.config import to_yaml


class Place:
    """What a command line may name in braces and a damage may change; made when it is first named."""

    def __init__(self, tmp: Path, digits: Path, trained: Path) -> None:
        self.tmp, self.digits, self._trained = tmp, digits, trained

    def __getitem__(self, name: str) -> Path:
        return getattr(self, name)

    @cached_property
    def config(self) -> Path:
        """That of ``run``, but it would train in ``new``."""
        path = self.tmp / "c.yaml"
        path.write_text(to_yaml(small_config(self.digits, self.tmp / "new", "train.epochs=1")))
        return path

    @cached_property
    def run(self) -> Path:
        """A finished run of VSSL on the digits."""
        return shutil.copytree(self._trained, self.tmp / "run")

    @cached_property
    def export(self) -> Path:
        return self.run / "backbone.safetensors"

    @cached_property
    def metrics(self) -> Path:
        return self.run / "metrics.jsonl"

    @cached_property
    def byol(self) -> Path:
        """A run of BYOL."""
        return save_untrained(small_config(self.digits, self.tmp / "byol", "method.name=byol"))

    @cached_property
    def data(self) -> Path:
        """The digits, packed."""
        return shutil.copytree(self.digits, self.tmp / "data")

    @cached_property
    def photos(self) -> Path:
        """Images: train/ and val/ with two classes of two each."""
        root = self.tmp / "photos"
        for seed, name in enumerate(("train/cat", "train/dog", "val/cat", "val/dog")):
            (root / name).mkdir(parents=True)
            for number in range(2):
                image(10 * seed + number, 40, 30).save(root / name / f"{number}.jpg")
        return root

    @cached_property
    def packed(self) -> Path:
        """``photos``, packed."""
        convert("folder", self.photos, self.tmp / "packed", format="resident", workers=1)
        return self.tmp / "packed"

    @cached_property
    def file(self) -> Path:
        """A file of the user's that is no image, no run, no folder."""
        (self.tmp / "file").write_text("mine")
        return self.tmp / "file"

    @cached_property
    def empty(self) -> Path:
        """A folder."""
        (self.tmp / "empty").mkdir()
        return self.tmp / "empty"

    @cached_property
    def pipe(self) -> Path:
        os.mkfifo(self.tmp / "pipe")
        return self.tmp / "pipe"


Damage = Callable[[Place], object]


class Row(NamedTuple):
    name: str
    command: str  # {name} is a member of Place
    said: str  # the error on standard error; "..." at its end stands for words of a library or of Python
    damage: Damage | None = None
    code: int = 2


def holds(name: str, content: str | bytes, below: str = "") -> Damage:
    """A file of the place, or one below its folder, holds something else."""

    def damage(place: Place) -> None:
        path = place[name] / below
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def cut_off(name: str, below: str = "") -> Damage:
    return lambda place: spoil(place[name] / below)


def gone(name: str, below: str) -> Damage:
    def damage(place: Place) -> None:
        path = place[name] / below
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def manifest(**entries: object) -> Damage:
    def damage(place: Place) -> None:
        path = place.data / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return damage


def flip_bit(place: Place) -> None:
    path = place.data / "train.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def link(target: str) -> Damage:
    """A link among the images of a class."""
    return lambda place: (place.photos / "train/cat/9.jpg").symlink_to(target)


def folder(name: str) -> Damage:
    """An empty folder among the images."""
    return lambda place: (place.photos / name).mkdir()


def make_pipe(place: Place) -> None:
    """A pipe named as an image: opening it would wait for ever."""
    os.mkfifo(place.photos / "train/cat/9.jpg")


def name_in_latin1(place: Place) -> None:
    Path(os.fsdecode(os.fsencode(place.photos / "train/cat") + b"/\xe9.jpg")).touch()


def unsupported(place: Place) -> None:
    for path in (place.photos / "train/cat").iterdir():
        path.rename(path.with_suffix(".heic"))


def unlabelled(place: Place) -> None:
    images = list((place.photos / "train").rglob("*.jpg"))
    for number, path in enumerate(images):
        path.rename(place.photos / f"{number}.jpg")
    shutil.rmtree(place.photos / "train")
    shutil.rmtree(place.photos / "val")


def one_class(place: Place) -> None:
    for split in ("train", "val"):
        shutil.rmtree(place.photos / split / "dog")


def all_checkpoints(place: Place) -> None:
    for path in (place.run / "checkpoints").iterdir():
        spoil(path)


def of_byol(place: Place) -> None:
    """The config names another method."""
    place.config.write_text(to_yaml(small_config(place.digits, place.tmp / "new", "method.name=byol")))


def of_other_width(place: Place) -> None:
    text = place.config.read_text()
    place.config.write_text(text.replace("latent: 8", "latent: 9"))
