"""Views of random pixels and the keys of a step, for methods that are called directly."""

import torch
from torch import Tensor

from pipelines.augment.groups import FIRST_LOCAL_VIEW
from pipelines.batch import Views
from vssl.methods.base import Keys


def random_views(images: int, full: int = 2, local: int = 0, side: int = 32, local_side: int = 16) -> Views:
    """The same normal numbers at every call; local views only if there are any."""
    generator = torch.Generator().manual_seed(1)
    views = torch.randn(full * images, 3, side, side, generator=generator)
    if not local:
        return Views(views)
    return Views(views, torch.randn(local * images, 3, local_side, local_side, generator=generator))


def keys(
    index: Tensor, epoch: Tensor | int = 0, *, step: int = 0, seed: int = 0, full: int = 2, local: int = 0
) -> Keys:
    """The keys of a step on the images ``index`` [B]."""
    numbers = [*range(full), *range(FIRST_LOCAL_VIEW, FIRST_LOCAL_VIEW + local)]
    return Keys(torch.tensor(seed), torch.as_tensor(epoch), torch.tensor(step), index, torch.tensor(numbers))
