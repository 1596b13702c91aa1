"""MoCo v3: the student tells the teacher's embedding of its other view from those of all other images."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MoCoV3"]


class MoCoV3(nn.Module):
    """InfoNCE over the batch, times 2 T, both directions summed.

    Chen, Xie and He, An Empirical Study of Training Self-Supervised Vision Transformers, arXiv 2104.02057,
    algorithm 1: contrastive(q1, k2) + contrastive(q2, k1), each 2 T CE(q k^T / T).

    Args:
        temperature: T > 0.
        rank: this process's place among those whose keys ``gather`` brings.
        gather: keys [B, D] of this process to those of all processes [size * B, D], in the order of ranks; None: this
            process's are all there are.
    """

    needs_noise = False

    def __init__(self, temperature: float, rank: int = 0, gather: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.temperature, self.rank, self.gather = temperature, rank, gather

    def forward(self, student: tuple[Tensor, None], teacher: tuple[Tensor, None], noise: None) -> dict:
        """student, teacher: (mean [2B, D], None), the first B rows view 1.

        Returns ``loss`` and detached scalars: ``cosine`` (of positives), ``accuracy`` (how often the right one of the
        candidates is nearest, in [0, 1]).
        """
        queries = F.normalize(student[0].float(), dim=1).chunk(2)
        keys = F.normalize(teacher[0].detach().float(), dim=1).chunk(2)[::-1]
        losses, cosines, hits = [], [], []
        for query, key in zip(queries, keys, strict=True):
            candidates = key if self.gather is None else self.gather(key)
            similarity = query @ candidates.T
            target = self.rank * len(query) + torch.arange(len(query), device=query.device)
            losses.append(2.0 * self.temperature * F.cross_entropy(similarity / self.temperature, target))
            cosines.append((query.detach() * key).sum(dim=1).mean())
            hits.append((similarity.detach().argmax(dim=1) == target).float().mean())
        return {"loss": sum(losses), "cosine": sum(cosines) / 2, "accuracy": sum(hits) / 2}
