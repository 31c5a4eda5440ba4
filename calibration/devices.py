"""A device that has no data sheet here: what its profile states of it."""

from typing import Any

from pydantic import Field

from calibration.hardware import gpu
from traces.errors import ConfigError
from traces.settings import Settings


class StatedDevice(Settings):
    """A CPU, or a GPU that calibration/data/gpus.yaml does not have."""

    name: str = Field(min_length=1)
    memory_bytes: int = Field(gt=0)
    """What the engine may count on: weights, activations and KV cache have to fit into it."""
    memory_bytes_per_s: float | None = Field(default=None, gt=0)
    """Read plus written, as measured or stated; none: unknown."""
    flops_per_s: float | None = Field(default=None, gt=0)
    """Of a large matrix product in the weights' dtype; none: unknown."""

    def peak_flops_per_s(self, weight_dtype: str) -> float | None:
        """The one figure that is stated, whatever the weights' dtype; None: unknown."""
        return self.flops_per_s


def stated_or_known(name: str, memory_bytes: int | None) -> dict[str, Any]:
    """A profile's `gpu`, where there is a data sheet of that name, else its `device`.

    Raises:
        ConfigError: there is none, and `memory_bytes` is not stated.
    """
    try:
        return {"gpu": gpu(name).name}
    except ConfigError as unknown:
        if memory_bytes is None:
            raise ConfigError(f"{unknown}; or state its memory (--memory 96GB)") from unknown
        return {"device": StatedDevice(name=name, memory_bytes=memory_bytes)}
