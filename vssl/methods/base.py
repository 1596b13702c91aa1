"""The interface between a method and the engine (views in, a loss out), and the options that methods share."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipelines.errors import UserError
from pipelines.options import option
from vssl.collectives import Peers
from vssl.models.ema import Teacher
from vssl.models.encoder import Encoder
from vssl.models.heads import Gaussian
from vssl.models.norm import separate_views

__all__ = ["Method", "MethodOptions", "Output", "PredictorOptions", "Recipe", "TeacherOptions", "swap_views"]


@dataclass(frozen=True)
class MethodOptions:
    """The method and its constants; each method has keys of its own. ``null`` means the method's recipe."""

    name: str = option("", "which method")
    projector_hidden: int | None = option(None, "width of the projector's hidden layers", low=1)
    latent: int | None = option(None, "D, width of the embedding that the loss sees", low=1)


@dataclass(frozen=True)
class TeacherOptions(MethodOptions):
    """Options of methods with a momentum teacher."""

    tau: float | None = option(None, "the teacher's momentum at the start; rises to 1 by a cosine", low=0.0, high=1.0)
    teacher_statistics: Literal["batch", "moving"] = option(
        "batch",
        "what the teacher's BatchNorm uses; batch: the statistics of each view of the batch; moving: moving averages "
        "of the student's (the teacher then runs in evaluation mode)",
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
    """

    optimizer: str
    lr: float
    weight_decay: float
    options: dict[str, Any]


class Output(NamedTuple):
    """What a method computes from the views of a batch."""

    loss: Tensor  # scalar, float32
    features: Tensor  # [2B, F], of the student's backbone, the B rows of view 1 first; for the online probe
    metrics: dict[str, Tensor]  # detached scalars, the same names at every step


class Method(nn.Module, ABC):
    """The student, the teacher if there is one, the loss, and other state, as parameters and buffers of this module.

    The engine moves, compiles, saves and resumes the module as a whole. After a step that was not finite, it restores
    the buffers that ``forward`` changes (those of BatchNorm, DINO's centre).

    Args:
        options: an instance of ``Options``, no value null.
        backbone: [B, 3, S, S] -> [B, width], its norms replaced by ``vssl.models.norm.adopt_norms``.
        width: width of its features.
        seed: seed of the counter-based noise.
        peers: the processes that share every batch.

    Attributes:
        student: backbone and projector.
        teacher: the student's moving average, or None.
        autocast: returns the context in which to run networks; losses are computed outside it, in float32.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions

    student: Encoder
    teacher: Teacher | None

    def __init__(
        self, options: MethodOptions, backbone: nn.Module, width: int, *, seed: int = 0, peers: Peers | None = None
    ) -> None:
        super().__init__()
        self.options: Any = options  # an instance of ``Options``
        self.seed, self.peers = seed, peers or Peers()
        self.autocast: Callable[[], AbstractContextManager] = contextlib.nullcontext
        self.width = width
        self.teacher = None
        self.build(backbone, width)
        separate_views(self, 2)  # as in the methods' papers: BatchNorm takes its statistics from one view at a time

    @classmethod
    @abstractmethod
    def recipe(cls, options: Any, *, small_images: bool) -> Recipe:
        """Settings for ``options``, which may hold null; ``small_images``: for CIFAR, else for ImageNet-100."""

    @abstractmethod
    def build(self, backbone: nn.Module, width: int) -> None:
        """Set ``student`` and the other parts; the constructor calls it last."""

    @abstractmethod
    def forward(self, views: Tensor, index: Tensor, epoch: Tensor) -> Output:
        """The loss of a batch.

        Args:
            views: float32 [2B, 3, S, S], the B first views, then the B second views.
            index: int64 [B], the images' positions in the packed split.
            epoch: int64, a scalar; with ``seed`` and ``index`` it determines the noise.
        """

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
        """The student's prediction of the teacher's embedding of the other view, and that embedding.

        Args:
            views: float32 [2B, 3, S, S], the first B of them view 1.

        Returns:
            mean and log-variance [2B, D], and the teacher's means [2B, D], which they predict.

        Raises:
            UserError: the method has no variance.
        """
        raise UserError(f"method.name={self.options.name} has no variance")


def swap_views(rows: Tensor) -> Tensor:
    """[2B, ...] with its halves exchanged: row i becomes the row of the other view of the same image."""
    return torch.cat(rows.chunk(2)[::-1])
