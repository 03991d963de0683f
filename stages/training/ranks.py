"""The processes that train together: each computes a part of every step, all take the same one.

They add up through MLX's own distributed engine (`mx.distributed`): rings of sockets on CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from stages.errors import EnvironmentFailure
from stages.training.batches import Batch, share


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    group: mx.distributed.Group | None = None

    def own(self, batches: Sequence[Batch]) -> list[int]:
        """Return the places of the batches that this process computes, the longest first."""
        if self.size == 1:
            return list(range(len(batches)))
        return share([batch.padded_tokens for batch in batches], self.size)[self.rank]

    def total(self, arrays: Sequence[mx.array]) -> list[mx.array]:
        """Add float32 arrays up over all processes: each gets the same bytes."""
        if self.group is None:
            return list(arrays)
        flat = mx.concatenate([array.reshape(-1) for array in arrays])
        summed = mx.distributed.all_sum(flat, group=self.group)
        found, start = [], 0
        for array in arrays:
            found.append(summed[start : start + array.size].reshape(array.shape))
            start += array.size
        return found

    def meet(self) -> None:
        """Wait until every process has come here."""
        mx.eval(self.total([mx.zeros(1)]))


ALONE = Ranks()


def join(workers: int) -> Ranks:
    """Join the other processes; raises EnvironmentFailure where they are not to be reached."""
    if workers == 1:
        return ALONE
    try:
        group = mx.distributed.init(strict=True)
    except RuntimeError as error:
        found = f"the processes cannot reach each other on this machine: {error}".splitlines()[0]
        mend = "run it again, or set train.workers=1"
        raise EnvironmentFailure("train.workers", found, mend) from error
    return Ranks(group.rank(), group.size(), group)
