"""MoCo v3's loss against an explicit InfoNCE, with the keys of one process and of several."""

import torch
from torch.nn import functional as F

from support.formulas import B, assert_same_value_and_gradient, embeddings
from vssl.collectives import Peers
from vssl.methods.moco_v3 import moco_v3_loss


def test_the_loss_is_info_nce_times_two_temperatures_summed_over_directions():
    queries, keys = embeddings()
    u, v = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    reference = 0.0
    for a, b in ((u[:B], v[B:]), (u[B:], v[:B])):
        similarity = (a @ b.T / 0.2).exp()
        reference = reference - 2 * 0.2 * (similarity.diagonal() / similarity.sum(dim=1)).log().mean()
    assert_same_value_and_gradient(moco_v3_loss(queries, keys, 0.2, Peers())["loss"], reference, [queries])


class SecondOfTwo(Peers):
    """The second of two processes; ``first`` is what the first one will send, call by call."""

    def __init__(self, first):
        super().__init__(distributed=True)
        object.__setattr__(self, "first", iter(first))  # a frozen dataclass

    def gather(self, rows):
        return torch.cat([next(self.first), rows])

    def own_rows(self, rows):
        return len(rows) + torch.arange(len(rows))


def test_all_processes_keys_are_candidates():
    queries, keys = embeddings()
    # Two processes of B / 2 images each: the first has the first images of both views.
    split = [torch.cat([t[:B].chunk(2)[half], t[B:].chunk(2)[half]]) for t in (queries, keys) for half in (0, 1)]
    first = F.normalize(split[2], dim=1).chunk(2)
    ours = moco_v3_loss(split[1], split[3], 0.2, SecondOfTwo(first))["loss"]
    u, v = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    reference = 0.0
    for a, b in ((u[:B], v[B:]), (u[B:], v[:B])):
        log_share = torch.log_softmax(a @ b.T / 0.2, dim=1).diagonal()
        reference = reference - 2 * 0.2 * log_share[B // 2 :].mean()
    torch.testing.assert_close(ours, reference)
