"""BYOL: the student predicts the teacher's projection of the other view."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BYOL"]


class BYOL(nn.Module):
    """2 - 2 cos(prediction, projection), mean over the batch, both directions summed.

    Grill et al., Bootstrap Your Own Latent, arXiv 2006.07733, equations 2 and 3. Averaging the directions instead is a
    known mistake: it halves the learning rate that the recipe means.
    """

    needs_noise = False

    def forward(self, student: tuple[Tensor, None], teacher: tuple[Tensor, None], noise: None) -> dict:
        """student, teacher: (mean [2B, D], None), the first B rows view 1.

        Returns ``loss`` (in [0, 8]) and the detached mean ``cosine``.
        """
        prediction = student[0].float()
        target = torch.cat(teacher[0].detach().float().chunk(2)[::-1])
        cosine = F.cosine_similarity(prediction, target, dim=1).mean()
        return {"loss": 2.0 * (2.0 - 2.0 * cosine), "cosine": cosine.detach()}
