"""What a GPU drew while it served: measured figures that a profile may have."""

from typing import Self

from pydantic import Field, model_validator

from traces.settings import Settings


class MeasuredPower(Settings):
    """Power of one GPU of a profile, as a meter (NVML, a socket) showed it."""

    idle_w: float = Field(ge=0)
    """Mean draw with the model loaded and no step running, W."""
    peak_w: float = Field(gt=0)
    """Mean draw while steps follow each other, W."""
    source: str = Field(min_length=1)
    """What was read, on what load."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.idle_w > self.peak_w:
            raise ValueError("idle_w must be at most peak_w")
        return self
