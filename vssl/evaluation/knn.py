"""Weighted k-nearest-neighbour classification."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["knn_predict"]


@torch.no_grad()
def knn_predict(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, classes: int, *, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Votes of the k nearest neighbours by cosine similarity, each weighted by exp(similarity / temperature).

    Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, arXiv 1805.01978, section 3.4.

    Args:
        bank: [N, F] with ``bank_labels`` int64 [N] in 0..classes-1.
        queries: [M, F].
        k: number of neighbours; at most N are used.

    Returns:
        float32 [M, classes], votes that sum to 1 over the classes.
    """
    bank = F.normalize(bank.float(), dim=1)
    votes = []
    # Chunks limit memory: 1,024 queries against a bank of a million images stay within 4 GiB.
    for chunk in F.normalize(queries.float(), dim=1).split(1024):
        similarity, nearest = (chunk @ bank.T).topk(min(k, len(bank)), dim=1)
        weight = torch.softmax(similarity / temperature, dim=1)
        vote = torch.zeros(len(chunk), classes, device=bank.device)
        votes.append(vote.scatter_add_(1, bank_labels[nearest], weight))
    return torch.cat(votes)
