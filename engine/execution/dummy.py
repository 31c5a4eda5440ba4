"""Random weights in place of trained ones: a step costs the same, and no file is needed."""

from collections.abc import Iterator, Mapping
from zlib import crc32

import torch

from engine.execution.weights import Part, Stored


class DummyCheckpoint:
    """Seeded random weights, made on the device: norms are 1, all else is normal of std 0.02.

    A tensor depends on seed, name and whole shape only: however it is split over ranks, the model
    is the same.
    """

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self.seed, self.dtype, self.device = seed, dtype, device

    def tensors(self, wanted: Mapping[str, Part]) -> Iterator[Stored]:
        """See Checkpoint."""
        generator = torch.Generator(self.device)
        for name, part in wanted.items():
            whole = torch.empty(part.shape, dtype=self.dtype, device=self.device)
            if name.endswith("norm.weight"):
                whole.fill_(1.0)
            else:
                # 32 bits: of more, a CPU's generator takes only the lower ones
                generator.manual_seed(crc32(f"{self.seed} {name}".encode()))
                whole.normal_(0.0, 0.02, generator=generator)
            yield Stored(name, part.shape, whole.__getitem__)

    def place(self, name: str) -> str:
        """See Checkpoint."""
        return "dummy weights"
