"""The order of samples: one global permutation per (seed, epoch), and a slice of every batch for each process."""

from collections.abc import Iterator

import numpy as np

from pipelines.errors import UserError

__all__ = ["Sampler"]


def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of ``range(count)``, int64 [count]; Philox keeps every (seed, epoch) stream apart."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch % 2**64], np.uint64)))
    return generator.permutation(count)


class Sampler:
    """The order of samples, the same for every loader, and the state that makes a mid-epoch resume exact.

    Args:
        count: samples in the split.
        batch_size: samples per batch, over all processes.
        seed: of the permutation; >= 0.
        rank, world_size: this process takes ``np.array_split(batch, world_size)[rank]``: every world size sees the same
            global batches.
        shuffle: False gives the packed order, for evaluation.
        drop_last: leave out the last ``count % batch_size`` samples of an epoch's permutation.
        limit: use only the first ``limit`` samples of a separate seeded shuffle, the same in every epoch; 0: all.

    Raises:
        UserError: there is no batch (empty split, or fewer samples than a batch under ``drop_last``).
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
        limit: int = 0,
    ) -> None:
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last
        # No epoch uses the random stream of "epoch -1".
        chosen = np.sort(_permutation(count, seed, -1)[:limit]) if 0 < limit < count else np.arange(count)
        self.indices = chosen.astype(np.int64)
        self.epoch = 0
        self.batches_done = 0
        if len(self) == 0:
            have = f"{len(self.indices)} images"
            raise UserError(f"no batch to train on: {have}, data.batch_size={batch_size}, data.drop_last={drop_last}")

    def __len__(self) -> int:
        """Batches per epoch."""
        full, rest = divmod(len(self.indices), self.batch_size)
        return full + int(rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        self.epoch, self.batches_done = epoch, 0

    def remaining(self) -> Iterator[np.ndarray]:
        """This process's indices, int64 [b], of each batch still to come. Looking ahead does not change the state."""
        order = self.indices
        if self.shuffle:
            order = order[_permutation(len(order), self.seed, self.epoch)]
        for number in range(self.batches_done, len(self)):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield np.array_split(batch, self.world_size)[self.rank]

    def advance(self) -> None:
        """One more batch was handed to the step."""
        self.batches_done += 1

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed, "epoch": self.epoch, "batches": self.batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state["seed"] != self.seed:
            raise UserError(f"the saved run used seed {state['seed']}, this one uses {self.seed}")
        self.epoch, self.batches_done = state["epoch"], state["batches"]
