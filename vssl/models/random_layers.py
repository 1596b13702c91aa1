"""Dropout and drop path whose random numbers are a function of seed, epoch, image, view and layer alone.

So a step with such layers is repeated exactly when a run is resumed, and is the same on any number of processes.
"""

import functools
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.errors import UserError
from pipelines.rng import named_uniform

__all__ = [
    "Draw",
    "adopt_random_layers",
    "check_repeatable",
    "draw_of",
    "refuse_random_layers",
    "restore_random_layers",
    "silence",
]


class Draw:
    """What the random layers of one backbone draw from; all of them share it.

    ``expect`` is called before each forward pass, outside compiled code, with tensors that a captured step may
    overwrite in place. Until then the layers are torch's own, with torch's generator.
    """

    def __init__(self) -> None:
        self._keys: tuple[Tensor, Tensor, Tensor, Tensor] | None = None  # seed, epoch, index [B], numbers of views
        self._groups: tuple[tuple[int, int, int], ...] = ()  # for each group: side, first view, number of views
        self._first = self._count = 0  # views of the rows that the backbone computes now

    @property
    def ready(self) -> bool:
        """Whether there are keys to draw from."""
        return self._keys is not None

    def expect(self, groups: list[Tensor], seed: Tensor, epoch: Tensor, index: Tensor, view: Tensor) -> None:
        """The next forward passes are of ``groups``, each [n * B, 3, S, S], view after view.

        Args:
            seed, epoch: int64 scalars.
            index: int64 [B], positions of the images in the packed split.
            view: int64, the numbers of the views of all groups, one group after the other.
        """
        self._keys, self._groups, first = (seed, epoch, index, view), (), 0
        for images in groups:
            count = len(images) // len(index)
            self._groups += ((images.shape[-1], first, count),)
            first += count

    def enter(self, _backbone: nn.Module, arguments: tuple[Tensor]) -> None:
        """Before the backbone runs: find out which views these rows are, by their side and number."""
        if self._keys is None:
            return
        rows, side = len(arguments[0]), arguments[0].shape[-1]
        self._first, self._count = 0, rows // len(self._keys[2])
        for of_group, first, count in self._groups:
            if of_group == side and count == self._count:
                self._first = first

    def uniform(self, name: str, numel: int, rows: int) -> Tensor:
        """float64 [rows, numel / rows] in [0, 1), for a layer of this name, whose input has so many rows: a whole
        number for each image of each view, which follow one another."""
        assert self._keys is not None
        seed, epoch, index, view = self._keys
        images = self._count * len(index)
        if rows % images:
            raise UserError(f"the random layer {name} has {rows} rows for {images} images: it must keep each image's")
        view = view[self._first : self._first + self._count]
        return named_uniform(seed, epoch, index, view, f"layer {name}", numel // images).view(rows, -1)


class _RandomLayer(nn.Module, ABC):
    """A layer that multiplies its input by random zeros. ``draw`` and ``name`` are set by ``adopt_random_layers``.

    ``silent``: the layer does nothing in training mode either.
    """

    draw: Draw
    name: str
    silent: bool = False

    def forward(self, x: Tensor) -> Tensor:
        if self.silent or not self.training:
            return x
        if not self.draw.ready:
            return super().forward(x)
        rate, shape = _rate(self), self._shape(x)
        kept = self.draw.uniform(self.name, math.prod(shape), len(x)) >= rate
        scale = 1.0 / (1.0 - rate) if rate < 1 and getattr(self, "scale_by_keep", True) else 1.0
        return x * (kept.view(shape).to(x.dtype) * scale)

    @abstractmethod
    def _shape(self, x: Tensor) -> tuple[int, ...]:
        """The shape of the zeros, which broadcasts to that of ``x``."""


class _OfElements(_RandomLayer):
    def _shape(self, x: Tensor) -> tuple[int, ...]:
        return tuple(x.shape)


class _OfChannels(_RandomLayer):
    def _shape(self, x: Tensor) -> tuple[int, ...]:
        return (*x.shape[:2], *[1] * (x.ndim - 2))


class _OfRows(_RandomLayer):
    def _shape(self, x: Tensor) -> tuple[int, ...]:
        return (len(x), *[1] * (x.ndim - 1))


_KINDS: dict[str, type[_RandomLayer]] = {
    "torch.nn.modules.dropout.Dropout": _OfElements,
    "torch.nn.modules.dropout.Dropout1d": _OfChannels,
    "torch.nn.modules.dropout.Dropout2d": _OfChannels,
    "torch.nn.modules.dropout.Dropout3d": _OfChannels,
    "timm.layers.drop.DropPath": _OfRows,
    "torchvision.ops.stochastic_depth.StochasticDepth": _OfRows,
}


def _rate(layer: nn.Module) -> float:
    """The probability of a zero."""
    return getattr(layer, "drop_prob", None) or getattr(layer, "p", None) or 0.0


def _kind(layer: nn.Module) -> type[_RandomLayer] | None:
    """How the layer can be replaced; None: it is not one of ours to replace, or does nothing."""
    found = _KINDS.get(f"{type(layer).__module__}.{type(layer).__qualname__}")
    whole_batch = getattr(layer, "mode", "row") == "batch"  # no function of an image
    return None if found is None or whole_batch or _rate(layer) == 0 else found


@functools.cache
def _keyed(kind: Any, layer: Any) -> type:
    return type(f"Keyed{layer.__name__}", (kind, layer), {})


def adopt_random_layers(backbone: nn.Module) -> None:
    """Convert every dropout of torch, drop path of timm and stochastic depth of torchvision (by rows) whose rate is
    not 0, in place, so that a ``Draw`` gives its numbers. A backbone without them stays as it is."""
    draw = Draw()
    for name, part in backbone.named_modules():
        for child_name, layer in part.named_children():
            child: Any = layer
            kind: Any = _kind(child)
            if kind is None:
                continue
            of: Any = type(child)
            child.__class__ = _keyed(kind, of)
            child.draw, child.name = draw, f"{name}.{child_name}".lstrip(".")
            if getattr(part, "fused_attn", False):  # timm's: the fused kernel has a generator of its own
                part.fused_attn = False
    if draw_of(backbone) is not None:
        backbone.register_forward_pre_hook(draw.enter)


def restore_random_layers(module: nn.Module) -> None:
    """Undo ``adopt_random_layers``, in place, wherever inside ``module`` the backbone is."""
    for part in module.modules():
        if isinstance(part, _RandomLayer):
            part.__class__ = type(part).__bases__[1]
            for attribute in ("draw", "name", "silent"):
                part.__dict__.pop(attribute, None)
        for key, hook in list(part._forward_pre_hooks.items()):
            if isinstance(getattr(hook, "__self__", None), Draw):
                del part._forward_pre_hooks[key]


def draw_of(module: nn.Module) -> Draw | None:
    """What the random layers inside ``module`` draw from; None: there are none."""
    return next((part.draw for part in module.modules() if isinstance(part, _RandomLayer)), None)


def silence(module: nn.Module) -> None:
    """Let the random layers inside ``module`` do nothing, in training mode too."""
    for part in module.modules():
        if isinstance(part, _RandomLayer):
            part.silent = True


def refuse_random_layers(module: nn.Module) -> None:
    """Raises UserError, naming it, if there is a random layer inside ``module`` that was not converted."""
    for name, part in module.named_modules():
        if _kind(part) is not None:
            raise UserError(
                f"{type(part).__name__} at {name} would not be repeated when the run is resumed: random layers belong "
                "in the backbone; set its rate to 0"
            )


def check_repeatable(backbone: nn.Module, name: str, side: int) -> None:
    """Try a backbone, on the CPU, in training mode on images of ``side`` pixels. ``name`` is its ``model.backbone``.
    Nothing changes, also no generator of random numbers.

    Raises:
        UserError: it draws random numbers elsewhere than in layers that ``adopt_random_layers`` can convert, or what
            it makes of an image depends on the image's place in the batch.
    """
    draw, training = draw_of(backbone), [part.training for part in backbone.modules()]
    buffers = [buffer.clone() for buffer in backbone.buffers()]
    pythons, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        images = torch.rand(3, 3, side, side)
        seed, places, order = torch.tensor(0), torch.arange(3), torch.tensor([2, 0, 1])

        def run(images: Tensor, index: Tensor) -> Any:
            if draw is not None:
                draw.expect([images], seed, seed, index, seed[None])
            try:
                return backbone(images)
            finally:
                for buffer, before in zip(backbone.buffers(), buffers, strict=True):
                    buffer.copy_(before)

        try:
            backbone.train()
            drawing = _first_drawing(backbone, lambda: run(images, places))
            if drawing is None and not _alike(run(images, places), run(images, places)):
                drawing = type(backbone).__name__
            if drawing is not None:
                raise UserError(
                    f"model.backbone={name}: {drawing} draws random numbers that a resumed run or another number of "
                    "processes would not repeat: set its rate to 0 (model.options) or choose another network"
                )
            if draw is not None:
                for part in backbone.modules():
                    part.training = isinstance(part, _RandomLayer)  # statistics of the batch would depend on order
                if not _alike(run(images, places)[order], run(images[order], places[order])):
                    raise UserError(
                        f"model.backbone={name}: its random layers do not keep the order of images: set their rates to "
                        "0 (model.options) or choose another network"
                    )
        finally:
            for part, mode in zip(backbone.modules(), training, strict=True):
                part.training = mode
            if draw is not None:
                draw.__init__()  # type: ignore[misc]
            random.setstate(pythons)
            np.random.set_state(numpys)


def _first_drawing(backbone: nn.Module, run: Callable[[], object]) -> str | None:
    """The class and name of the innermost module that changes a generator's state first; None: no module does."""
    found: list[str] = []
    before: dict[str, tuple] = {}

    def note(name: str, *_: object) -> None:
        before[name] = _generators()

    def compare(name: str, module: nn.Module, *_: object) -> None:
        if not found and before[name] != _generators():
            found.append(f"{type(module).__name__} at {name}" if name else type(module).__name__)

    hooks = []
    for name, module in backbone.named_modules():
        hooks.append(module.register_forward_pre_hook(functools.partial(note, name)))
        hooks.append(module.register_forward_hook(functools.partial(compare, name)))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _generators() -> tuple:
    """The states of the generators of random numbers that a network may use."""
    numpys: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numpys[1].tobytes(), numpys[2]


def _alike(first: Any, second: Any) -> bool:
    return bool(torch.allclose(first, second, rtol=1e-3, atol=1e-4 * float(first.abs().max())))
