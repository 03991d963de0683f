"""The processes that train together: each computes a part of every step, all take the same one.

They add up through MLX's own distributed engine (`mx.distributed`): rings of sockets on CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic, sleep

import mlx.core as mx
import numpy as np

from stages.errors import EnvironmentFailure
from stages.training.batches import Batch, share
from stages.training.progress import peak_memory_bytes

JOIN_SECONDS = 120
"""How long the others may take to start their part."""
_AGAIN = "run the same command again: it goes on from the last checkpoint"


class PeerLost(EnvironmentFailure):
    """Report that another of the processes that train together has ended."""

    def __init__(self) -> None:
        super().__init__("train", "another process of this training is gone", _AGAIN)


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

    def others_memory_bytes(self) -> int:
        """Return the most memory that the other processes have held, for all to ask at once."""
        if self.size == 1:
            return 0
        # In MiB: float32 counts no bytes beyond 16 MB.
        own = peak_memory_bytes() >> 20
        [found] = self.total([mx.array([float(own)])])
        return (int(np.array(found)[0]) - own) << 20

    def meet(self) -> None:
        """Wait until every process has come here."""
        mx.eval(self.total([mx.zeros(1)]))

    def require_same(self, step: int) -> None:
        """Raise EnvironmentFailure unless all processes stand after the same step."""
        if self.size == 1:
            return
        own = np.zeros((self.size, 2), np.float32)
        # A step may have more digits than float32.
        own[self.rank] = divmod(step, 1 << 16)
        [found] = self.total([mx.array(own)])
        high, low = np.array(found).astype(int).T
        steps = ((high << 16) + low).tolist()
        if len(set(steps)) > 1:
            stand = ", ".join(map(str, steps))
            raise EnvironmentFailure(
                "train.resume", f"the processes stand after different steps: {stand}",
                "a checkpoint is damaged on one machine: remove it there, or set "
                "train.resume=never")  # fmt: skip

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raise PeerLost where the block loses the connection to another process."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not str(error).startswith(("[ring]", "[jaccl]", "[nccl]")):
                raise
            raise PeerLost from error


ALONE = Ranks()


def join(workers: int) -> Ranks:
    """Join the other processes; raises EnvironmentFailure where they are not to be reached."""
    if workers == 1:
        return ALONE
    until = monotonic() + JOIN_SECONDS
    while True:
        try:
            group = mx.distributed.init(strict=True)
        except RuntimeError as error:
            # MLX tries for half a minute, and the others may need longer to start.
            if monotonic() > until:
                found = f"the processes cannot reach each other: {error}".splitlines()[0]
                mend = "run it again, or on one machine with train.workers=1"
                raise EnvironmentFailure("train.workers", found, mend) from error
            sleep(1)
        else:
            return Ranks(group.rank(), group.size(), group)
