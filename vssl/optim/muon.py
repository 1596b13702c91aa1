"""Muon: momentum, orthogonalised."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.options import option
from vssl.optim.adamw import AdamWOptions
from vssl.optim.base import Group, good, shrink, trained
from vssl.runtime.precision import resolve_amp

__all__ = ["Muon", "MuonOptions", "orthogonalise"]

_STEPS = 5
_COEFFICIENTS = 3.4445, -4.7750, 2.0315


@dataclass(frozen=True)
class MuonOptions(AdamWOptions):
    """The defaults are AdamW's, because updates have the size of AdamW's (see ``Muon``)."""

    momentum: float = option(0.95, "momentum", low=0.0, high=0.999999)


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Approximate orthogonal factors U V^T of matrices U S V^T: singular values become 0.68 to 1.21, except those below
    1/500 of the Frobenius norm. A zero matrix stays zero.

    Five steps of a Newton-Schulz iteration, X <- a X + b (X X^T) X + c (X X^T)^2 X, from X = M / |M| on
    (Jordan et al., Muon: An optimizer for hidden layers, https://kellerjordan.github.io/posts/muon/).

    Args:
        matrices: float32 [N, rows, columns].
        dtype: in which the products are computed.

    Returns:
        [N, rows, columns] of ``dtype``.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices  # the smaller of both products
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)).to(dtype)
    for _ in range(_STEPS):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for matrices and kernels, AdamW for the other weights, both with the same learning rate.

    B <- m B + G;  w <- (1 - lr wd) w - lr 0.2 sqrt(max(rows, columns)) orthogonalise(G + m B)

    (Jordan et al., as above, with Nesterov momentum). The factor of Liu et al., Muon is Scalable for LLM Training,
    arXiv 2502.16982, section 2.2, gives updates the root mean square of AdamW's; AdamW's rates and decay therefore suit
    Muon. A kernel [out, in, k, k] is the matrix [out, in k k]. AdamW takes biases, norms, embeddings, tokens,
    depthwise kernels, and classifiers such as DINO's prototypes, as the references do with the last layer (``matrix``
    in ``vssl.optim.groups``). There is no exception for the first layer.

    Matrices of the same shape are multiplied together, in bfloat16 on GPUs that have it, else in float32. If the
    attribute ``found_inf`` is 1, no weight, momentum or other state changes. Every process computes all updates; equal
    gradients give equal weights.
    """

    Options = MuonOptions
    splits_matrices = True

    def __init__(self, groups: list[Group], options: MuonOptions) -> None:
        super().__init__(groups, {})
        self.momentum, self.betas = options.momentum, options.betas
        device = groups[0]["lr"].device
        self.dtype = torch.bfloat16 if resolve_amp("auto", device) is torch.bfloat16 else torch.float32
        for group in self.param_groups:
            for weight in group["params"]:
                if group["kind"] == "matrix":
                    self.state[weight]["momentum_buffer"] = torch.zeros_like(_matrix(weight))
                else:
                    averages = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
                    self.state[weight] |= {"count": torch.zeros((), device=device), **averages}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        shrink(self, self.param_groups)
        for group in self.param_groups:
            weights = trained(group)
            if weights:
                update = self._orthogonal_step if group["kind"] == "matrix" else self._adam_step
                update(weights, group["lr"])

    def _orthogonal_step(self, weights: list[Tensor], lr: Tensor) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for weight in weights:
            by_shape.setdefault(_matrix(weight).shape, []).append(weight)
        ordered = [weight for members in by_shape.values() for weight in members]
        stacks = [ordered[0].new_zeros(len(members), *shape) for shape, members in by_shape.items()]
        updates = [update for stack in stacks for update in stack.unbind()]
        # torch's fused SGD, from 0 at the rate -1, gives G + m B, and changes nothing if found_inf is 1.
        torch._fused_sgd_(
            updates,
            [_matrix(weight, weight.grad).contiguous() for weight in ordered],
            [self.state[weight]["momentum_buffer"] for weight in ordered],
            lr=-1.0,
            weight_decay=0.0,
            momentum=self.momentum,
            dampening=0.0,
            nesterov=True,
            maximize=False,
            is_first_step=False,
            found_inf=getattr(self, "found_inf", None),
        )
        for stack in stacks:
            factor = 0.2 * max(stack.shape[1:]) ** 0.5
            stack.copy_(orthogonalise(stack, self.dtype)).mul_(factor * lr)
        torch._foreach_sub_([_matrix(weight) for weight in ordered], updates)

    def _adam_step(self, weights: list[Tensor], lr: Tensor) -> None:
        states = [self.state[weight] for weight in weights]
        averages, squares, counts = ([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "count"))
        # A list, because adding one tensor to all would wait for the device.
        torch._foreach_add_(counts, [torch.ones_like(lr) * good(self)] * len(counts))
        torch._fused_adamw_(
            weights,
            [weight.grad for weight in weights],
            averages,
            squares,
            [],
            counts,
            lr=lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
            found_inf=getattr(self, "found_inf", None),
        )


def _matrix(weight: Tensor, tensor: Tensor | None = None) -> Tensor:
    """A weight [out, in, ...], or another tensor of its shape, as a matrix [out, rest], whose columns are in the order
    of the weight's memory: which order it is makes no difference to the orthogonal factor, and a kernel in
    channels_last format is not copied."""
    order = sorted(range(1, weight.ndim), key=weight.stride, reverse=True)
    return (weight.detach() if tensor is None else tensor).permute(0, *order).flatten(1)
