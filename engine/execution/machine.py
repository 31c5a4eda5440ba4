"""What PyTorch runs on: names and versions, for the record."""

from typing import NamedTuple

import torch


class Machine(NamedTuple):
    """The device as PyTorch sees it."""

    gpu: str
    """Name of the first GPU; empty on a CPU."""
    gpu_uuid: str
    """By which nvidia-smi knows it; empty on a CPU."""
    memory_bytes: int
    """Of the GPU; 0 on a CPU."""
    torch: str
    cuda: str
    """Version that PyTorch was built for; empty on a CPU."""
    threads: int
    """That PyTorch computes with on the CPU."""


def machine(device: str) -> Machine:
    """What `device`, `cpu` or `cuda`, is."""
    if device == "cpu":
        return Machine("", "", 0, str(torch.__version__), "", torch.get_num_threads())
    found = torch.cuda.get_device_properties(0)
    uuid = getattr(found, "uuid", None)
    return Machine(
        gpu=found.name,
        gpu_uuid="" if uuid is None else f"GPU-{uuid}",
        memory_bytes=found.total_memory,
        torch=str(torch.__version__),
        cuda=torch.version.cuda or "",
        threads=torch.get_num_threads(),
    )
