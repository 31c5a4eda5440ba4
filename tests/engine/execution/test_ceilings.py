"""Ceilings are above what any run on the device reaches, and in its order of magnitude."""

from time import perf_counter

import pytest

pytest.importorskip("torch")

import torch

from engine.execution import ceilings
from engine.execution.ceilings import Ceilings, measure_ceilings


def test_a_cpu_s_ceilings_are_what_a_plain_run_comes_near():
    found = measure_ceilings(torch.device("cpu"), torch.float32)
    assert found.dtype == "float32" and found.device.startswith("CPU")
    source = torch.ones(2**26, dtype=torch.uint8)
    target = torch.zeros_like(source)
    matrix = torch.randn(512, 512)

    def rate(work: float, run) -> float:
        """The best of some runs."""
        times = []
        for _ in range(10):
            began = perf_counter()
            run()
            times.append(perf_counter() - began)
        return work / min(times)

    copied = rate(2 * 2**26, lambda: target.copy_(source))
    multiplied = rate(2 * 512**3, lambda: matrix @ matrix)
    # A busy machine, and caches, leave wide margins; a wrong unit or factor is far outside.
    assert 0.1 < found.bytes_per_s / copied < 10
    assert 0.1 < found.flops_per_s / multiplied < 10


def test_rates_are_of_bytes_both_read_and_written_and_of_adds_and_multiplies(monkeypatch):
    monkeypatch.setattr(ceilings, "_seconds", lambda run, device: 0.5)
    found = measure_ceilings(torch.device("cpu"), torch.bfloat16)
    assert found.bytes_per_s == 2 * found.copy_bytes == 4 * ceilings.COPY_BYTES["cpu"]
    assert found.flops_per_s == 4 * found.matrix**3
    assert found.dtype == "bfloat16"


@pytest.mark.gpu
def test_a_gpu_s_ceilings_are_below_its_data_sheet():
    found: Ceilings = measure_ceilings(torch.device("cuda", 0), torch.bfloat16)
    assert 1e11 < found.bytes_per_s < 2e13
    assert 1e12 < found.flops_per_s < 1e16
    assert (
        found.flops_per_s > 2 * measure_ceilings(torch.device("cuda", 0), torch.float32).flops_per_s
    )
