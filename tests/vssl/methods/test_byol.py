"""BYOL's loss against the squared distance of unit vectors."""

from torch.nn import functional as F

from support.formulas import B, assert_same_value_and_gradient, embeddings
from vssl.methods.byol import byol_loss


def test_the_loss_is_the_squared_distance_of_unit_vectors_summed_over_directions():
    prediction, projection = embeddings()
    u, v = F.normalize(prediction, dim=1), F.normalize(projection, dim=1)
    reference = sum((a - b).square().sum(dim=1).mean() for a, b in ((u[:B], v[B:]), (u[B:], v[:B])))
    assert_same_value_and_gradient(byol_loss(prediction, projection.roll(B, 0)), reference, [prediction])
