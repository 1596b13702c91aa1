"""Load a trained model: features, and embeddings with their uncertainty."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.augment.views import Augment
from pipelines.errors import UserError
from pipelines.images import ImageError
from pipelines.loading.pictures import decode_ahead, each_picture, to_canvas
from vssl.engine.checkpoint import is_checkpoint, load_newest
from vssl.engine.config import Config, load_config, resolve
from vssl.methods import build_method
from vssl.methods.base import Method
from vssl.methods.pairs import ViewCounts
from vssl.models.backbones import build_backbone
from vssl.models.plain import restore_layers
from vssl.models.weights import fit_backbone, read_weights
from vssl.runtime.device import resolve_device

__all__ = ["Embedding", "Pretrained", "load"]


class Embedding(NamedTuple):
    """The student's posterior, a diagonal Gaussian for each image."""

    mean: Tensor  # float32 [N, D]
    variance: Tensor  # float32 [N, D], > 0


class Pretrained:
    """A trained student (or, if asked for, its teacher in its place), frozen, in evaluation mode, in float32.

    Its networks consist of torch's own layers, so that ``torch.jit.script``, ``torch.fx`` and ``torch.export`` take
    ``backbone``.

    Attributes:
        source: the run, checkpoint or exported backbone that was loaded.
        config: the config of its run, resolved.
        backbone: [N, 3, S, S] -> [N, F].
        method: the whole trained method; None for an exported backbone.
        step: the step of the checkpoint; None for an exported backbone.
        trained_by: the name of the method that trained it; None: a backbone whose run is not known.
        augment: the transforms of the run.
        device: the device that holds the model.
    """

    def __init__(
        self,
        source: Path,
        config: Config,
        backbone: nn.Module,
        method: Method | None,
        step: int | None,
        device: torch.device,
        trained_by: str | None,
    ) -> None:
        self.trained_by = trained_by
        self.source, self.config, self.step, self.device = source, config, step, device
        (method or backbone).to(device, memory_format=torch.channels_last).requires_grad_(False).eval()
        self.backbone, self.method = backbone, method
        restore_layers(method or backbone)
        self.augment = Augment(config.augment, config.data.image_size)

    @torch.no_grad()
    def features(self, images: Any, *, batch_size: int | None = None) -> Tensor:
        """The backbone's features, float32 [N, F] on ``device``; arguments and errors as in ``embed``."""
        return torch.cat([self.backbone(batch) for batch in self._batches(images, batch_size)])

    @torch.no_grad()
    def embed(self, images: Any, *, batch_size: int | None = None) -> Embedding:
        """Mean and variance of the student's posterior for each image, on ``device``.

        Args:
            images: one or more of any sizes, in any of these forms, or an iterable of them, also a long iterator:
                - the path of a picture, or of a folder: every picture below it, in sorted order;
                - a PIL image;
                - RGB pixels uint8 [H, W, 3] or [N, H, W, 3] (array or tensor).
                Files and PIL images are converted to RGB as ``tools/convert.py`` does, images longer than
                ``data.canvas`` pixels are scaled down to it, and the run's evaluation transform (centre square,
                resize, normalise) is applied. Or one array or tensor of floats [N, 3, S, S], already normalised as by
                ``Augment.evaluate``.
            batch_size: images per forward pass; no more than a few batches are decoded at a time. None: the run's.

        Raises:
            UserError: there is no variance (the method is not VSSL, or only a backbone was loaded); a picture is
                missing or damaged, or a folder holds none: the message names it.
            ValueError: images of another kind, shape or dtype, or no image.
        """
        method = self.trained_method()
        parts = [method.posterior(self.backbone(batch)) for batch in self._batches(images, batch_size)]
        mean, logvar = map(torch.cat, zip(*parts, strict=True))
        return Embedding(mean, logvar.exp())

    def trained_method(self) -> Method:
        """The method. Raises UserError if only an exported backbone was loaded."""
        if self.method is None:
            raise UserError(f"{self.source} is a backbone alone, without a variance: give its run or a checkpoint")
        return self.method

    def _batches(self, images: Any, batch_size: int | None) -> Iterator[Tensor]:
        """Normalised batches, float32 [B, 3, S, S] on the device, at least one."""
        size, count = batch_size or self.config.data.batch_size, 0
        batches = self._split(images, size) if _is_float(images) else self._read(images, size)
        for batch in batches:
            count += len(batch)
            yield batch
        if count == 0:
            raise ValueError("there are no images")

    def _split(self, images: Tensor | np.ndarray, batch_size: int) -> Iterator[Tensor]:
        side = self.config.data.image_size
        if images.ndim != 4 or images.shape[1:] != (3, side, side):
            raise ValueError(f"normalised images must be [N, 3, {side}, {side}], not {list(images.shape)}")
        for start in range(0, len(images), batch_size):
            yield torch.as_tensor(images[start : start + batch_size]).to(self.device, torch.float32)

    def _read(self, images: Any, batch_size: int) -> Iterator[Tensor]:
        with contextlib.closing(decode_ahead(each_picture(images), batch_size, self.config.data)) as batches:
            for batch in batches:
                pictures = []
                for name, pixels in batch:
                    if isinstance(pixels, ImageError):
                        raise UserError(f"{name}: {pixels}")
                    pictures.append(pixels)
                pixels, size = to_canvas(pictures)
                yield self.augment.evaluate(pixels.to(self.device), size.to(self.device))


def _is_float(images: Any) -> bool:
    if isinstance(images, np.ndarray):
        return images.dtype.kind == "f"
    return isinstance(images, Tensor) and images.is_floating_point()


def load(
    source: str | Path,
    *,
    device: str = "auto",
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    teacher: bool = False,
) -> Pretrained:
    """Load a trained model.

    Args:
        source: a run directory (its newest checkpoint), a checkpoint, an exported backbone, or weights of torchvision
            or timm (``.safetensors``, ``.pth``, ...; see ``fit_backbone`` for what fits).
        device: auto, cpu or cuda.
        config: a YAML file that describes the model and its evaluation transform (size, ``augment.mean`` and ``std``);
            None: the ``config.yaml`` of the run, in the run directory, beside the file, or one folder above it (for a
            checkpoint in ``checkpoints/``).
        overrides: ``section.key=value``, applied to the config.
        teacher: give the student the weights of its teacher, with which some papers (DINO's) evaluate.

    Raises:
        UserError: the source or its config does not exist, the weights do not fit the config, or there is no teacher.
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"{source}: no such run, checkpoint or exported backbone")
    settings = resolve(load_config(config or _own_config(source), overrides))
    target, image_size = resolve_device(device), settings.data.image_size
    state = load_newest(source) if source.is_dir() else read_weights(source)
    if not is_checkpoint(state):
        if teacher:
            raise UserError(f"{source} is a backbone alone, without a teacher: give its run or a checkpoint")
        backbone, _ = build_backbone(settings.model, image_size)
        if left_out := fit_backbone(backbone, state, source):
            print(left_out, file=sys.stderr)
        trained_by = None if config else settings.method.name  # a given config need not be that of its run
        return Pretrained(source, settings, backbone, None, None, target, trained_by)
    model = dataclasses.replace(settings.model, weights="")  # only the run's start needed them
    method = build_method(settings.method, model, image_size, views=ViewCounts.of(settings.augment))
    try:
        method.load_state_dict(state["method"])
    except RuntimeError as error:
        first = str(error).split("\n")[1].strip()
        raise UserError(f"{source} does not fit its config: {first}") from error
    if teacher:
        if method.teacher is None:
            raise UserError(f"{source}: method.name={settings.method.name} has no teacher")
        method.student.load_state_dict(method.teacher.network.state_dict())
    return Pretrained(source, settings, method.student.backbone, method, state["step"], target, settings.method.name)


def _own_config(source: Path) -> Path:
    """The ``config.yaml`` of the run that ``source`` belongs to."""
    folders = [source] if source.is_dir() else [source.parent, source.parent.parent]
    for folder in folders:
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    raise UserError(
        f"{source}: no config.yaml of its run {'in' if source.is_dir() else 'beside'} it: give --config FILE"
    )
