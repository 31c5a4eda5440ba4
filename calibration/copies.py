"""What copies of KV blocks between the tiers of a replica take."""

from pydantic import Field

from engine.work import CPU, GPU, Move
from traces.settings import Settings


class CopySettings(Settings):
    """Rates of the links between tiers; the defaults are assumed, not measured."""

    block_s: float = Field(default=2.0e-6, ge=0)
    """For each block copied, whatever its size."""
    cpu_bytes_per_s: float = Field(default=25.0e9, gt=0)
    """Between the GPU and CPU memory: about half of what PCIe Gen5 x16 carries."""
    disk_bytes_per_s: float = Field(default=2.0e9, gt=0)
    """To and from disk: about one NVMe drive."""
    beside_steps: bool = True
    """Copies of what a step has computed run while the next one computes. A CPU engine makes all
    copies itself: false."""

    def seconds(self, moves: tuple[Move, ...], block_bytes: int) -> float:
        """Time that the copies take one after the other."""
        near = sum(1 for source, target in moves if {source.level, target.level} == {GPU, CPU})
        far = len(moves) - near
        per_near = self.block_s + block_bytes / self.cpu_bytes_per_s
        return near * per_near + far * (self.block_s + block_bytes / self.disk_bytes_per_s)
