"""What the engine knows of a method: views in, a loss out; and the options that methods share."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from pipelines.errors import UserError
from pipelines.options import option
from vssl.collectives import Peers
from vssl.models.ema import Teacher
from vssl.models.encoder import Encoder
from vssl.models.heads import Gaussian

__all__ = ["Method", "MethodOptions", "Output", "PredictorOptions", "Recipe", "TeacherOptions", "swap_views"]


@dataclass(frozen=True)
class MethodOptions:
    """The method and its constants; each method has keys of its own. ``null`` means the method's recipe."""

    name: str = option("", "which method")
    projector_hidden: int | None = option(None, "width of the projector's hidden layers", low=1)
    latent: int | None = option(None, "D, width of the embedding that the loss sees", low=1)


@dataclass(frozen=True)
class TeacherOptions(MethodOptions):
    """Of methods with a momentum teacher."""

    tau: float | None = option(None, "the teacher's momentum at the start; rises to 1 by a cosine", low=0.0, high=1.0)


@dataclass(frozen=True)
class PredictorOptions(TeacherOptions):
    """Of methods whose student predicts what the teacher says."""

    predictor: bool = option(True, "without one, the prediction is the projector's output")
    predictor_hidden: int | None = option(
        None, "width of the predictor's hidden layer; null: projector_hidden if that is given", low=1
    )


@dataclass(frozen=True)
class Recipe:
    """A method's published settings: what ``null`` means.

    Args:
        optimizer, lr, weight_decay: of the section ``optim``.
        options: of the method's own options.
    """

    optimizer: str
    lr: float
    weight_decay: float
    options: dict[str, Any]


class Output(NamedTuple):
    """What a method makes of a batch's views."""

    loss: Tensor  # scalar, float32
    features: Tensor  # [2B, F], the student's backbone's, the B rows of view 1 first; the online probe learns from them
    metrics: dict[str, Tensor]  # detached scalars, the same names at every step


class Method(nn.Module, ABC):
    """The student, perhaps a teacher, the loss, and whatever else must be saved: parameters and buffers of this module.

    The engine moves, compiles, saves and resumes it as one. Buffers that ``forward`` writes to (BatchNorm's, a centre)
    are put back by the engine after a step that was not finite.

    Args:
        options: an instance of ``Options``, nothing in it null.
        backbone: [B, 3, S, S] -> [B, width], norms adopted (``vssl.models.norm.adopt_norms``).
        width: of its features.
        seed: of counter-based noise.
        peers: the processes that share every batch.

    Attributes:
        student: backbone and projector.
        teacher: the student's moving average, or None.
        autocast: gives the context to run networks in; losses are computed outside of it, in float32.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions

    student: Encoder
    teacher: Teacher | None

    def __init__(
        self, options: MethodOptions, backbone: nn.Module, width: int, *, seed: int = 0, peers: Peers | None = None
    ) -> None:
        super().__init__()
        self.options: Any = options  # of the class's own ``Options``
        self.seed, self.peers = seed, peers or Peers()
        self.autocast: Callable[[], AbstractContextManager] = contextlib.nullcontext
        self.width = width
        self.teacher = None
        self.build(backbone, width)

    @classmethod
    @abstractmethod
    def recipe(cls, options: Any, *, small_images: bool) -> Recipe:
        """Settings for ``options`` in which some values may be null; ``small_images``: CIFAR's, else ImageNet-100's."""

    @abstractmethod
    def build(self, backbone: nn.Module, width: int) -> None:
        """Set ``student`` and the other parts; the rest of the constructor."""

    @abstractmethod
    def forward(self, views: Tensor, index: Tensor, epoch: Tensor) -> Output:
        """The loss of a batch.

        Args:
            views: float32 [2B, 3, S, S], the B first views, then the B second ones.
            index: int64 [B], the images' positions in the packed split.
            epoch: int64, a scalar; with ``seed`` and ``index`` it names the noise.
        """

    def after_update(self, rate: Tensor) -> None:
        """The optimizer has taken its step: let the teacher follow.

        Args:
            rate: 1 - tau, a float32 scalar on the device; 0 after a step that was not finite.
        """
        if self.teacher is not None:
            self.teacher.update(self.student, rate)

    def guarded_buffers(self) -> list[Tensor]:
        """Floating-point buffers that ``forward`` changes; a teacher's are none of them."""
        return [b for name, b in self.named_buffers() if b.is_floating_point() and not name.startswith("teacher.")]

    def posterior(self, features: Tensor) -> Gaussian:
        """The Gaussian that the student gives for backbone features [N, F]: mean and log-variance [N, D].

        Raises:
            UserError: the method has no variance.
        """
        raise UserError(f"method.name={self.options.name} has no variance")

    def predict(self, views: Tensor) -> tuple[Gaussian, Tensor]:
        """What the student says of the teacher's embedding of each image's other view, and what the teacher says.

        Args:
            views: float32 [2B, 3, S, S], the first B of them view 1.

        Returns:
            mean and log-variance [2B, D], and the teacher's means [2B, D] that they are about.

        Raises:
            UserError: the method has no variance.
        """
        raise UserError(f"method.name={self.options.name} has no variance")


def swap_views(rows: Tensor) -> Tensor:
    """[2B, ...] with its halves exchanged: row i becomes that of the same image's other view."""
    return torch.cat(rows.chunk(2)[::-1])
