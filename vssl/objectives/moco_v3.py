"""MoCo v3: the student tells the teacher's embedding of its other view from those of all other images."""

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
    """

    needs_noise = False

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student: tuple[Tensor, None], teacher: tuple[Tensor, None], noise: None) -> dict:
        """student, teacher: (mean [2B, D], None), the first B rows view 1.

        Returns ``loss`` and detached scalars: ``cosine`` (of positives), ``accuracy`` (how often the right one of the
        B candidates is nearest, in [0, 1]).
        """
        queries = F.normalize(student[0].float(), dim=1).chunk(2)
        keys = F.normalize(teacher[0].detach().float(), dim=1).chunk(2)[::-1]
        losses, cosines, hits = [], [], []
        for query, key in zip(queries, keys, strict=True):
            similarity = query @ key.T
            target = torch.arange(len(query), device=query.device)
            losses.append(2.0 * self.temperature * F.cross_entropy(similarity / self.temperature, target))
            cosines.append(similarity.detach().diagonal().mean())
            hits.append((similarity.detach().argmax(dim=1) == target).float().mean())
        return {"loss": sum(losses), "cosine": sum(cosines) / 2, "accuracy": sum(hits) / 2}
