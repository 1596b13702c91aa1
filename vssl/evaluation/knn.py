"""Nearest neighbours by cosine similarity, and classification by their weighted votes."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["knn_predict", "nearest_neighbours"]


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
    similarity, nearest = nearest_neighbours(bank, queries, k)
    weight = torch.softmax(similarity / temperature, dim=1)
    return torch.zeros(len(queries), classes, device=bank.device).scatter_add_(1, bank_labels[nearest], weight)


@torch.no_grad()
def nearest_neighbours(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of ``bank`` [N, F] most similar to each of ``queries`` [M, F], by cosine; all if there are fewer.

    Returns:
        similarities float32 [M, min(k, N)], the greatest first, and the rows' indices int64 [M, min(k, N)].
    """
    bank = F.normalize(bank.float(), dim=1)
    # Chunks limit memory: 1,024 queries against a bank of a million images stay within 4 GiB.
    chunks = F.normalize(queries.float(), dim=1).split(1024)
    similarity, nearest = zip(*((chunk @ bank.T).topk(min(k, len(bank)), dim=1) for chunk in chunks), strict=True)
    return torch.cat(similarity), torch.cat(nearest)
