"""What copies of KV blocks between the tiers of a replica take."""

from pydantic import Field

from engine.config import OffloadSettings
from traces.settings import Settings


class CopySettings(Settings):
    """Rates of the links between tiers; the defaults are assumed, not measured."""

    block_s: float = Field(default=2.0e-6, ge=0)
    """For each block copied, whatever its size."""
    cpu_bytes_per_s: float = Field(default=25.0e9, gt=0)
    """Between a GPU and CPU memory: about half of what PCIe Gen5 x16 carries."""
    disk_bytes_per_s: float = Field(default=2.0e9, gt=0)
    """To and from disk: about one NVMe drive."""
    remote_bytes_per_s: float = Field(default=12.5e9, gt=0)
    """To and from the remote pool, all replicas together: a network of 100 Gbit/s."""
    remote_latency_s: float = Field(default=1.0e-4, ge=0)
    """Until the first byte of a transfer from or to the remote pool arrives."""
    staging_bytes: int = Field(default=256 * 2**20, ge=0)
    """CPU memory for blocks on their way to disk or pool, which nobody waits for as long as there
    is room in it; as large as that of kvcast's engine."""
    beside_steps: bool = True
    """Copies of what a step has computed run while the next one computes. A CPU engine makes all
    copies itself: false."""

    def stated_by(self, offload: OffloadSettings) -> "CopySettings":
        """These rates, except where the settings of the tiers state others."""
        names = ("cpu_bytes_per_s", "disk_bytes_per_s", "remote_bytes_per_s", "remote_latency_s")
        stated = {name: getattr(offload, name) for name in names}
        return self.model_copy(update={k: v for k, v in stated.items() if v is not None})
