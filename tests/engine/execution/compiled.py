"""Compile the kernels for an H200 where there is none, and print what they take: run by a test.

A line for each kernel: what it is for, its name, registers, bytes of stack, bytes of shared memory.
"""

import re
import subprocess
import sys
import tempfile
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from engine.execution import kernels
from engine.execution.inputs import StepInput
from engine.execution.kernels.chip import Chip
from engine.execution.kvcache import KvPool
from engine.kvformats import block_layout

META = torch.device("meta")
"""Tensors without memory: sizes may be those of real models."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def compile_only(kernel: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kind: Any) -> Any:
    """In place of a launch."""
    compiled = LAUNCH(kernel, *args, grid=grid, warmup=True, **kind)
    FOUND.append((kernel.__name__, compiled))
    return compiled


LAUNCH = JITFunction.run
FOUND: list[tuple[str, Any]] = []


def prepare() -> None:
    """Launches compile for compute capability 9.0, and wrappers take tensors without memory."""
    target = GPUTarget("cuda", 90, 32)
    driver.set_active(  # pyright: ignore
        SimpleNamespace(
            get_current_target=lambda: target,
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
        )
    )
    JITFunction.run = compile_only
    for name in ("decode", "layout", "append", "elementwise"):
        module = import_module(f"engine.execution.kernels.{name}")
        module.__dict__.update(chip=lambda device: Chip(132, True), require_kernels=lambda x: None)
    kernels.__dict__["require_kernels"] = lambda x: None


def mixed_step(block_tokens: int) -> StepInput:
    """64 decodes and two chunks of 4096 tokens, contexts of up to 131072."""

    def of(*size: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device=META)

    tokens = 64 + 2 * 4096
    return StepInput(
        tokens=of(tokens, dtype=torch.int64),
        positions=of(tokens),
        token_rows=of(tokens),
        tables=of(257, 131072 // block_tokens),
        rows=of(66),
        context=of(66),
        starts=of(3),
        decodes=64,
        max_chunk=4096,
        max_context=131072,
    )


def attention(
    kv_dtype: str, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, window: int = 0
) -> None:
    """What a layer runs between rope and output projection."""
    layout = block_layout(kv_dtype, 32, kv_heads, dim, 16)
    pool = KvPool(layout, 4096, device=META, dtype=dtype, rows=257)
    step = mixed_step(16)
    fused = torch.empty(len(step.positions), heads + 2 * kv_heads, dim, dtype=dtype, device=META)
    q, k, v = fused.split((heads, kv_heads, kv_heads), dim=1)
    kernels.OPS.append(k, v, pool, 3, step)
    kernels.OPS.attend(q, pool, 3, step, 0.1, window)


def elementwise(dtype: torch.dtype) -> None:
    x = torch.empty(64, 4096, dtype=dtype, device=META)
    heads = torch.empty(64, 48, 128, dtype=dtype, device=META)
    weight = torch.empty(4096, dtype=dtype, device=META)
    positions = torch.empty(64, dtype=torch.int32, device=META)
    kernels.OPS.rms_norm(x, weight, 1e-5)
    kernels.OPS.rms_norm(heads[:, :32], weight[:128], 1e-5)
    kernels.OPS.add_rms_norm(x, x, weight, 1e-5)
    kernels.OPS.rope(heads[:, :32], heads[:, 32:40], positions, torch.empty(99, 128, device=META))
    kernels.OPS.silu_mul(torch.empty(64, 2 * 14336, dtype=dtype, device=META))


def resources(compiled: Any) -> tuple[int, int, int]:
    """Registers, stack and shared memory of a kernel."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [tool, "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said).groups()  # pyright: ignore
    return int(registers), int(stack), compiled.metadata.shared


def main() -> None:
    """Arguments: `elementwise:dtype`, or `kv_dtype:dtype:heads:kv_heads:dim` and `:window`."""
    prepare()
    for argument in sys.argv[1:]:
        what, dtype, *sizes = argument.split(":")
        if what == "elementwise":
            elementwise(DTYPES[dtype])
        else:
            attention(what, DTYPES[dtype], *map(int, sizes))
        for name, compiled in FOUND:
            print(argument, name, *resources(compiled))
        FOUND.clear()


if __name__ == "__main__":
    main()
