"""What single kernels cost: settings of the roofline, and the formulas that stand on their own."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from calibration.hardware import Gpu


class Efficiencies(BaseModel):
    """What a kernel reaches of the data sheet's figure, as shares; docs say why these defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gemm: float = Field(default=0.70, gt=0, le=1)
    memory: float = Field(default=0.80, gt=0, le=1)
    attention_memory: float = Field(default=0.80, gt=0, le=1)
    attention: float = Field(default=0.55, gt=0, le=1)
    interconnect: float = Field(default=0.65, gt=0, le=1)


class HostCosts(BaseModel):
    """What the CPU adds to a step, and how kernels are launched."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step_s: float = Field(default=1.0e-3, ge=0)
    """Scheduler and bookkeeping of a step."""
    sequence_s: float = Field(default=8.0e-6, ge=0)
    """The same for each sequence in it."""
    overlap_scheduling: bool | None = None
    """The CPU prepares a step while the one before runs: the longer of CPU and GPU counts.
    Otherwise their sum. None: as the scheduler works, overlapped when it is asynchronous."""
    graph_max_tokens: int = Field(default=512, ge=0)
    """Steps of up to so many tokens replay a CUDA graph, padded to the next captured size."""
    kernels_per_layer: int = Field(default=10, ge=0)
    kernel_gap_s: float = Field(default=2.0e-6, ge=0)
    """Start and drain of a kernel, when the GPU does no work."""
    kernel_launch_s: float = Field(default=5.0e-6, ge=0)
    """CPU time of a launch outside a graph; it hides behind the GPU's work where that is longer."""


def captured_size(tokens: int) -> int:
    """Least size of vLLM's default CUDA graphs that holds `tokens`: 1, 2, 4, 8 and on in steps of
    8 up to 256, then of 16.
    """
    if tokens <= 2:
        return tokens
    if tokens <= 4:
        return 4
    step = 8 if tokens <= 256 else 16
    return -(-tokens // step) * step


def all_reduce_s(message_bytes: int, tp: int, gpu: Gpu, efficiency: float) -> float:
    """Time to sum a tensor over `tp` GPUs, by the alpha-beta model.

    Through a switch or mesh the faster of one-shot (each reads all others' tensors) and two-shot
    (reduce-scatter, all-gather); over PCIe a ring of 2 (tp - 1) hops.
    """
    if tp == 1:
        return 0.0
    bytes_per_s = gpu.interconnect_bytes_per_s * efficiency
    alpha = gpu.interconnect_latency_s
    scattered = 2 * (tp - 1) / tp * message_bytes
    if gpu.interconnect == "pcie":
        return 2 * (tp - 1) * alpha + scattered / bytes_per_s
    if gpu.interconnect == "mesh":
        bytes_per_s *= min(1.0, (tp - 1) / 7)
    one_shot = alpha + (tp - 1) * message_bytes / bytes_per_s
    return min(one_shot, 2 * alpha + scattered / bytes_per_s)


def experts_touched(experts: int, chosen: int, tokens: Any) -> Any:
    """Expected number of distinct experts that so many tokens choose, uniformly: E (1 - (1-k/E)^n).

    `tokens` is a number or a numpy array, and so is the result.
    """
    return experts * (1 - (1 - chosen / experts) ** tokens)
