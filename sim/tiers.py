"""KV tiers below the GPU on the simulated clock: the engine's own decisions, and what copies cost.

A step waits for the copies that bring what it reads and save what it overwrites. Copies of what it
has computed (write-through) run beside the next step, which they make longer only by what they
outlast it; or, where the device makes its copies itself, after the step, before the next.
"""

from calibration.copies import CopySettings
from calibration.costs import PICOSECONDS, CostModel
from engine.batch import Batch
from engine.config import OffloadSettings
from engine.tiers import Tiers
from engine.work import Move


def tiers_of(offload: OffloadSettings, block_bytes: int, kv_dtype: str) -> Tiers | None:
    """Tiers of a replica at rest; None without room below the GPU."""
    if not (offload.cpu_bytes or offload.disk_bytes):
        return None
    return Tiers(offload, block_bytes, whole_blocks=kv_dtype == "int4_channel")


class CopyingCost:
    """A cost model whose steps include the copies that the scheduler has just asked for.

    Ask it once for each step that is scheduled: the copies count as made then.
    """

    def __init__(
        self, cost: CostModel, tiers: Tiers, copies: CopySettings, block_bytes: int
    ) -> None:
        """`cost` is that of the steps alone, `tiers` are the scheduler's own."""
        self._cost = cost
        self._tiers = tiers
        self._copies = copies
        self._block_bytes = block_bytes
        self._outstanding_ps = 0
        """Copies of what the step before computed."""

    def progression(self, batch: Batch) -> tuple[int, int, int]:
        """See CostModel.progression; each step is a progression of its own."""
        before, after = self._tiers.take_moves()
        step, _, _ = self._cost.progression(batch)
        outlast = max(0, self._outstanding_ps - step)
        self._outstanding_ps = self._ps(after)
        if not self._copies.beside_steps:
            step += self._outstanding_ps
            self._outstanding_ps = 0
        return self._ps(before) + step + outlast, 0, 1

    def _ps(self, moves: tuple[Move, ...]) -> int:
        return round(self._copies.seconds(moves, self._block_bytes) * PICOSECONDS)
