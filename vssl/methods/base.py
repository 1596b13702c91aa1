"""The interface between a method and the engine (views in, a loss out), and the options that methods share."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from pipelines.batch import Views
from pipelines.errors import UserError
from pipelines.options import option
from vssl.collectives import Peers
from vssl.methods.pairs import ViewCounts
from vssl.models.ema import Teacher
from vssl.models.encoder import Encoder
from vssl.models.heads import Gaussian
from vssl.models.norm import separate_views
from vssl.models.random_layers import draw_of, refuse_random_layers

__all__ = ["Keys", "Method", "MethodOptions", "Output", "PredictorOptions", "Recipe", "TeacherOptions"]


@dataclass(frozen=True)
class MethodOptions:
    """The method and its constants; each method has keys of its own. ``null`` means the method's recipe."""

    name: str = option("", "which method")
    projector_hidden: int | None = option(None, "width of the projector's hidden layers", low=1)
    latent: int | None = option(None, "D, width of the embedding in the loss", low=1)


@dataclass(frozen=True)
class TeacherOptions(MethodOptions):
    """Options of methods with a momentum teacher."""

    tau: float | None = option(
        None,
        "the teacher's momentum at the start, for batches of up to 256; of larger ones tau ** (data.batch_size / 256); "
        "rises to 1 by a cosine",
        low=0.0,
        high=1.0,
    )


@dataclass(frozen=True)
class PredictorOptions(TeacherOptions):
    """Options of methods whose student predicts the teacher's output."""

    predictor: bool = option(True, "use a predictor; without one, the prediction is the projector's output")
    predictor_hidden: int | None = option(
        None, "width of the predictor's hidden layer; null: projector_hidden if that is set, else the recipe", low=1
    )


@dataclass(frozen=True)
class Recipe:
    """A method's published settings, which replace ``null``.

    Args:
        optimizer, lr, weight_decay: values for the section ``optim``.
        options: values for the method's own options.
        augment: values for the section ``augment``.
    """

    optimizer: str
    lr: float
    weight_decay: float
    options: dict[str, Any]
    augment: dict[str, Any] = field(default_factory=dict)


class Keys(NamedTuple):
    """The keys of all random numbers of a method, as tensors on the device: two steps with the same keys draw the same
    numbers (``pipelines.rng``), on any number of processes."""

    seed: Tensor  # int64, a scalar: the run's
    epoch: Tensor  # int64, a scalar, from 0
    step: Tensor  # int64, a scalar: steps of the run before this one
    index: Tensor  # int64 [B], the images' positions in the packed split
    view: Tensor  # int64 [V + L], the views' numbers (``pipelines.augment.groups``), full views first


class Output(NamedTuple):
    """The results of a method for the views of a batch."""

    loss: Tensor  # scalar, float32
    features: Tensor  # [V * B, F], of the student's backbone for the full views; for the online probe
    metrics: dict[str, Tensor]  # detached scalars, the same names at every step


class Method(nn.Module, ABC):
    """The student, the teacher if there is one, the loss, and other state, as parameters and buffers of this module.

    The engine moves, compiles, saves and resumes the module as a whole. After a step that was not finite, it restores
    the buffers that ``forward`` changes (those of BatchNorm, DINO's centre).

    Args:
        options: an instance of ``Options``, no value null.
        backbone: [N, 3, S, S] -> [N, width], its norms replaced by ``vssl.models.norm.adopt_norms``.
        width: width of its features.
        views: how many views an image has.
        peers: the processes that share every batch.

    Attributes:
        micro_batch: what it means that ``train.accumulate`` shows the loss a part of a batch at a time; empty: the loss
            looks at each image alone.
        student: backbone and projector.
        teacher: the student's moving average, or None.
        autocast: returns the context in which to run networks; losses are computed outside it, in float32.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions

    micro_batch: str = ""
    student: Encoder
    teacher: Teacher | None

    def __init__(
        self,
        options: MethodOptions,
        backbone: nn.Module,
        width: int,
        *,
        views: ViewCounts | None = None,
        peers: Peers | None = None,
    ) -> None:
        super().__init__()
        self.options: Any = options  # an instance of ``Options``
        self.views, self.peers = views or ViewCounts(), peers or Peers()
        self.autocast: Callable[[], AbstractContextManager] = contextlib.nullcontext
        self.width = width
        self.teacher = None
        self.build(backbone, width)
        refuse_random_layers(self)
        self._draw = draw_of(self.student.backbone)
        self._images = 0  # in the last batch
        self.register_forward_pre_hook(lambda method, arguments: method.expect(*arguments))

    @classmethod
    @abstractmethod
    def recipe(cls, options: Any, *, small_images: bool) -> Recipe:
        """Settings for ``options``, which may hold null; ``small_images``: for CIFAR, else for ImageNet-100."""

    @abstractmethod
    def build(self, backbone: nn.Module, width: int) -> None:
        """Set ``student`` and the other parts; the constructor calls it last."""

    @abstractmethod
    def forward(self, views: Views, keys: Keys) -> Output:
        """The loss of a batch.

        Args:
            views: of B images.
            keys: of its random numbers.
        """

    def expect(self, views: Views, keys: Keys) -> None:
        """Prepare the layers of the networks for a batch. As in the methods' papers, BatchNorm takes its statistics
        from one view at a time; dropout and drop path get their keys. A call of the module does it too, but not in
        compiled code, before which it must be called."""
        if torch.compiler.is_compiling():
            return
        if len(keys.index) != self._images:
            self._images = len(keys.index)
            separate_views(self, self._images)
        if self._draw is not None:
            groups = [group for group in views if group is not None]
            self._draw.expect(groups, keys.seed, keys.epoch, keys.index, keys.view)

    def encode(self, views: Views) -> tuple[Tensor, list[Any]]:
        """The student's features of the full views [V * B, F], and the projector's embeddings of each group."""
        features, embedding = self.student(views.full)
        return features, [embedding] if views.local is None else [embedding, self.student(views.local)[1]]

    def add_predictors(self, build: Callable[[], nn.Module]) -> None:
        """Set ``predictor``, and ``local_predictor`` if there are local views: each kind of view has one of its own
        (arXiv 2602.05845)."""
        self.predictor = build()
        if self.views.local:
            self.local_predictor = build()

    def apply_predictors(self, embeddings: list[Tensor]) -> Tensor:
        """The predictions from embeddings of each group of views, joined: [(V + L) * B, D]."""
        full, *local = embeddings
        return torch.cat([self.predictor(full), *(self.local_predictor(part) for part in local)])

    def after_update(self, rate: Tensor) -> None:
        """Update the teacher; called after each optimizer step.

        Args:
            rate: 1 - tau, a float32 scalar on the device; 0 after a step that was not finite.
        """
        if self.teacher is not None:
            self.teacher.update(self.student, rate)

    def guarded_buffers(self) -> list[Tensor]:
        """Floating-point buffers that ``forward`` changes; it never changes the teacher's."""
        return [b for name, b in self.named_buffers() if b.is_floating_point() and not name.startswith("teacher.")]

    def posterior(self, features: Tensor) -> Gaussian:
        """The student's Gaussian for backbone features [N, F]: mean and log-variance [N, D].

        Raises:
            UserError: the method has no variance.
        """
        raise UserError(f"method.name={self.options.name} has no variance")

    def predict(self, views: Tensor) -> tuple[Gaussian, Tensor]:
        """The student's prediction of the teacher's embedding of another view, and this embedding, for all pairs of
        full views.

        Args:
            views: float32 [V * B, 3, S, S].

        Returns:
            mean and log-variance [P * B, D], and the teacher's means [P * B, D], which they predict, pair after pair.

        Raises:
            UserError: the method has no variance.
        """
        raise UserError(f"method.name={self.options.name} has no variance")
