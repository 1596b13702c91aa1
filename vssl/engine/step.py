"""One training step: views, method, backward, optimizer, moving average. No host sync inside."""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from pipelines.augment.groups import view_groups
from pipelines.batch import Batch, Views
from vssl.collectives import Exchange, dry_run, is_dry_run
from vssl.engine.config import Resolved
from vssl.engine.metrics import MeanAccumulator
from vssl.engine.nonfinite import Watch
from vssl.evaluation.feature_statistics import feature_health
from vssl.evaluation.probe import OnlineProbe
from vssl.methods.base import Keys, Method
from vssl.optim import build_optimizer, load_optimizer, set_learning_rate, set_weight_decay
from vssl.optim.sgd import SGDOptions
from vssl.runtime.precision import LossScale, autocast
from vssl.runtime.processes import World

__all__ = ["MakeViews", "TrainStep", "Update"]

# From (pixels, size, index, epoch), the first three as in ``Batch``, to the views.
MakeViews = Callable[[Tensor, Tensor, Tensor, Tensor], Views]


class Update(NamedTuple):
    """The outcome of a step."""

    good: Tensor  # bool, a scalar: loss and gradients were finite
    grad_norm: Tensor  # float32, a scalar: the global norm of the method's gradients


class _Learners(nn.Module):
    """All trained modules in one: DistributedDataParallel needs one call before each backward pass.

    A call runs ``compute``: ``loss``, or a compiled version of it.
    """

    def __init__(self, method: Method, probe: OnlineProbe | None) -> None:
        super().__init__()
        self.method, self.probe = method, probe
        self.compute = self.loss

    def forward(self, views: Views, keys: Keys, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.method.expect(views, keys)
        return self.compute(views, keys, labels)

    def loss(self, views: Views, keys: Keys, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Views of B images, labels int64 [B] -> loss and detached scalars."""
        loss, features, metrics = self.method(views, keys)
        metrics = {"loss": loss.detach(), **metrics, **feature_health(features, len(labels))}
        if self.probe is not None:
            probe_loss = self.probe.loss(features, labels)
            metrics["probe_loss"] = probe_loss.detach()
            loss = loss + probe_loss
        return loss, metrics


class TrainStep:
    """The training step and everything that it changes.

    A step whose loss or gradient is not finite changes neither weights, optimizer state, teacher nor buffers; ``watch``
    counts it instead, and the trainer reads the count when it logs.

    Args:
        config: resolved, as its type says.
        make_views: makes the views; ``set_views`` replaces it.
        method: on the device, in channels_last format.
        probe: the online probe, or None.
        amp: dtype to autocast to, or None.
        world: the processes, each of which takes an equal part of every batch. Gradients are averaged over them while
            backward still runs, and weights, optimizer state, teacher and buffers stay equal on all of them.
    """

    def __init__(
        self,
        config: Resolved,
        make_views: MakeViews,
        method: Method,
        probe: OnlineProbe | None,
        device: torch.device,
        amp: torch.dtype | None,
        world: World | None = None,
    ) -> None:
        self.config, self.method, self.probe, self.world = config, method, probe, world or World()
        self.autocast = method.autocast = autocast(device, amp)
        self.loss_scale = LossScale(device, enabled=amp == torch.float16)
        self.optimizer = build_optimizer(method, config.optim, method.student.backbone)
        self.probe_optimizer: Any = None  # None without a probe
        if probe is not None:
            self.probe_optimizer = build_optimizer(probe, SGDOptions(name="sgd", weight_decay=0.0))
        self.metrics = MeanAccumulator()
        # Values that change from step to step are tensors: a compiled or captured step reads their current content.
        self.epoch, self.step = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))
        self._seed = torch.tensor(config.train.seed, device=device)
        self._groups = view_groups(config.augment, config.data.image_size)
        self._view = torch.tensor([number for group in self._groups for number in group.numbers], device=device)
        self.ema_rate = torch.zeros((), device=device)  # 1 - tau
        self.watch = Watch(config.data.batch_size // self.world.size, device)
        self._weights = [w for w in method.parameters() if w.requires_grad]
        guarded = [*method.guarded_buffers(), *(() if probe is None else probe.buffers())]
        self._buffers = [buffer.view(-1) for buffer in guarded]
        self._saved_buffers = torch.cat(self._buffers) if self._buffers else None
        self._learners = _Learners(method, probe)
        self._forward = self._distribute(self._learners) if self.world.distributed else self._learners
        self.set_views(make_views)

    def _distribute(self, learners: nn.Module) -> DistributedDataParallel:
        """``learners``, whose gradients are averaged over the processes while backward still runs."""
        unused = self._weights_without_gradient(learners)  # DistributedDataParallel would wait for them
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(learners, unused)
        # A captured step needs gradients that are not accumulated on the default stream.
        apart = torch.cuda.stream(torch.cuda.Stream()) if self.epoch.is_cuda else contextlib.nullcontext()
        with apart, warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions of torch have another name for it
            # DDP need not send buffers: they are synchronised when computed, or averaged in ``update``.
            parallel = DistributedDataParallel(learners, broadcast_buffers=False, gradient_as_bucket_view=True)
        if self.config.train.exchange == "bf16":
            parallel.register_comm_hook(None, bf16_compress_hook)
        return parallel

    def _weights_without_gradient(self, learners: nn.Module) -> list[str]:
        """The names of the weights that no loss depends on, found by a trial on two random images; nothing changes."""
        device, images = self.epoch.device, 2
        generator = torch.Generator().manual_seed(0)
        shapes = [(group.count * images, 3, group.side, group.side) for group in self._groups]
        views = Views(*(torch.rand(shape, generator=generator).to(device) for shape in shapes))
        index = torch.arange(images, device=device)
        buffers = [buffer.clone() for buffer in learners.buffers()]
        with dry_run():
            loss, _ = learners(views, self.keys(index), torch.zeros_like(index))
            loss.backward()
        with torch.no_grad():
            for buffer, before in zip(learners.buffers(), buffers, strict=True):
                buffer.copy_(before)
        unused = [name for name, weight in learners.named_parameters() if weight.requires_grad and weight.grad is None]
        learners.zero_grad()
        return unused

    def set_views(self, make_views: MakeViews) -> None:
        """From now on make the views with another function, and run eager."""
        self._plain_views = make_views
        self.eager()

    def compile(self) -> None:
        """Compile the augmentation into one graph, and the forward pass with the loss into another.

        Nothing is compiled before the first batch arrives. With several processes the forward pass becomes one graph
        for each of DistributedDataParallel's buckets, which can exchange the gradients of a bucket during the backward
        pass of the next one.
        """
        from torch._inductor import decomposition  # takes a second, which eager runs save

        self.compiled = True
        # A run has a shape for each size of views and of ragged batch; with fullgraph more than 8 would be an error.
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1_000_000
        # Else the backward pass of max-pooling would be atomic additions to a float32 image that is not channels_last.
        decomposition.decompositions.pop(torch.ops.aten.max_pool2d_with_indices_backward.default, None)
        decomposition.fast_random_decomps.cache_clear()  # a copy of the table, if something was compiled before
        self._learners.compute = torch.compile(self._learners.loss, fullgraph=True, dynamic=False)
        # Inductor usually stores a value that took 30 operations. On a GPU computing up to 60 again is faster.
        options = {"realize_opcount_threshold": 60} if self.epoch.is_cuda else None
        self._make_views = torch.compile(self._plain_views, fullgraph=True, dynamic=False, options=options)

    def eager(self) -> None:
        """Undo ``compile``."""
        self.compiled = False
        self._make_views, self._learners.compute = self._plain_views, self._learners.loss

    def dry_run(self, batch: Batch) -> list[Exchange]:
        """Run what ``compile`` compiles, without training and without waiting for other processes. Returns the
        exchanges left out, in their order (see ``vssl.collectives.dry_run``)."""
        with dry_run() as exchanges:
            self.backward(batch)
        return exchanges

    def set_schedule(
        self,
        epoch: int,
        lr: float,
        probe_lr: float,
        tau: float,
        weight_decay: float | None = None,
        step: int = 0,
    ) -> None:
        """Write epoch, learning rates, the teacher's momentum, the weight decay (None: as it is) and the number of
        steps before this one into the tensors that the step reads."""
        self.epoch.fill_(epoch)
        self.step.fill_(step)
        set_learning_rate(self.optimizer, lr)
        if weight_decay is not None:
            set_weight_decay(self.optimizer, weight_decay)
        if self.probe_optimizer is not None:
            set_learning_rate(self.probe_optimizer, probe_lr)
        self.ema_rate.fill_(1.0 - tau)

    def __call__(self, batch: Batch) -> None:
        """Train on a batch; its metrics are added to ``metrics``."""
        if self._buffers:
            torch.cat(self._buffers, out=self._saved_buffers)
        metrics = self.backward(batch)
        update = self.update(metrics["loss"])
        self.watch.note(update.good, batch.index)
        self.metrics.add({**metrics, "grad_norm": update.grad_norm}, update.good)

    @contextlib.contextmanager
    def ready_views(self, views: Sequence[Views]) -> Iterator[None]:
        """For measurements: the step takes ``views`` in turn for its micro-batches instead of making them."""
        made, before = itertools.cycle(views), self._make_views
        self._make_views = lambda *_: next(made)
        try:
            yield
        finally:
            self._make_views = before

    def forward(self, batch: Batch) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """For measurements: the forward pass; loss (with its graph) and detached scalars of each micro-batch."""
        return [
            self._forward(self.views(pixels, size, index), self.keys(index), labels)
            for pixels, size, labels, index in self.micro_batches(batch)
        ]

    def micro_batches(self, batch: Batch) -> list[tuple[Tensor, ...]]:
        """The parts of a batch, as ``Batch``, whose gradients a step accumulates.

        Every n-th image is in the same part: the parts are the same for any number of processes.
        """
        count = min(self.config.train.accumulate, len(batch.index))
        return [tuple(part[first::count] for part in batch) for first in range(count)]

    def backward(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the gradients of a batch, times the loss scale; returns the metrics, averaged over micro-batches.

        Each micro-batch begins with the same buffers, which then become the mean of what the micro-batches make of
        them: moving averages (BatchNorm's, DINO's centre) move as far as they do for a whole batch.
        """
        for optimizer in filter(None, (self.optimizer, self.probe_optimizer)):
            optimizer.zero_grad()  # backward then writes each gradient instead of adding it to zeros
        totals: list[Tensor] = []
        micros = self.micro_batches(batch)
        start = torch.cat(self._buffers) if self._buffers and len(micros) > 1 else None
        moved: Any = 0.0
        for number, (pixels, size, labels, index) in enumerate(micros, start=1):
            with self._sending(number == len(micros)):
                loss, metrics = self._forward(self.views(pixels, size, index), self.keys(index), labels)
                parts = len(batch.index) / len(index)  # micro-batches of a ragged last batch are not all of one size
                (loss * (self.loss_scale.scale / parts)).backward()
            values = torch._foreach_div(list(metrics.values()), parts)
            totals = torch._foreach_add(totals, values) if totals else values
            if start is not None:
                moved = moved + torch.cat(self._buffers) / parts
                self._set_buffers(start if number < len(micros) else moved)
        return dict(zip(metrics, totals, strict=True))

    @torch.no_grad()
    def _set_buffers(self, values: Tensor) -> None:
        """Write the guarded buffers, all in one tensor."""
        torch._foreach_copy_(self._buffers, values.split([len(buffer) for buffer in self._buffers]))

    def _sending(self, last: bool) -> contextlib.AbstractContextManager:
        """Context in which processes exchange gradients only in the last micro-batch of a step."""
        if not self.world.distributed or (last and not is_dry_run()):
            return contextlib.nullcontext()
        return self._forward.no_sync()

    def views(self, pixels: Tensor, size: Tensor, index: Tensor) -> Views:
        """The augmented views of a batch; arguments as in ``Batch``."""
        return self._make_views(pixels, size, index, self.epoch)

    def keys(self, index: Tensor) -> Keys:
        """The keys of all randomness in a step on the images ``index``, int64 [B]."""
        return Keys(self._seed, self.epoch, self.step, index, self._view)

    @torch.no_grad()
    def update(self, loss: Tensor) -> Update:
        """Update weights, teacher and buffers; nothing changes if the loss or a gradient is not finite."""
        gradients = [w.grad for w in self._weights if w.grad is not None]
        norm = get_total_norm(gradients, foreach=True) / self.loss_scale.scale
        good = self.world.all(torch.isfinite(norm) & torch.isfinite(loss))
        found_inf = 1.0 - good.float()
        limit = self.config.train.clip_grad
        if limit > 0 or self.loss_scale.enabled:
            factor = (limit / (norm + 1e-6)).clamp(max=1.0) if limit > 0 else 1.0
            torch._foreach_mul_(gradients, factor / self.loss_scale.scale)
            if self.probe is not None:
                torch._foreach_div_([w.grad for w in self.probe.parameters()], self.loss_scale.scale)
        for optimizer in filter(None, (self.optimizer, self.probe_optimizer)):
            optimizer.found_inf = found_inf  # torch's fused optimizers and ours change nothing if it is 1
            optimizer.step()
        if not self.config.model.sync_batchnorm:  # each process has its own statistics
            self.world.average(self._buffers)
        if self._buffers:
            self._set_buffers(torch.where(good, torch.cat(self._buffers), self._saved_buffers))
        self.method.after_update(self.ema_rate * good)
        self.loss_scale.update(found_inf)
        return Update(good, norm)

    def state_dict(self) -> dict:
        """The state that a resumed run needs; see ``load_state_dict``."""
        state = {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss_scale": self.loss_scale.state_dict(),
        }
        if self.probe is not None:
            state |= {"probe": self.probe.state_dict(), "probe_optimizer": self.probe_optimizer.state_dict()}
        return state

    def load_state_dict(self, state: dict) -> None:
        self.method.load_state_dict(state["method"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.loss_scale.load_state_dict(state["loss_scale"])
        if self.probe is not None:
            # Probes of earlier versions did not standardise features and have no statistics.
            self.probe.load_state_dict(self.probe.state_dict() | state["probe"])
            load_optimizer(self.probe_optimizer, state["probe_optimizer"])
