"""Steps of decodes captured as CUDA graphs: a replay launches all kernels at the cost of one."""

from collections.abc import Callable, Collection

import torch


def bucket_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Numbers of decodes to capture, ascending: 1, 2, 4, then multiples of 8, and the largest."""
    sizes = {1, 2, 4, *range(8, max_num_seqs + 1, 8), max_num_seqs}
    return tuple(sorted(size for size in sizes if size <= max_num_seqs))


def capture(
    prepare: Callable[[int], None],
    step: Callable[[int], None],
    sizes: Collection[int],
    device: torch.device,
) -> dict[int, torch.cuda.CUDAGraph]:
    """A graph of `step(size)` for each size.

    Args:
        prepare: brings what a step of so many decodes reads to where it reads it.
        step: runs that step; reads and writes the same memory each time.
        sizes: what to capture; the largest goes first, so that the others find room in the memory
            it has left to the pool they share.
        device: a CUDA device.
    """
    graphs: dict[int, torch.cuda.CUDAGraph] = {}
    if not sizes:
        return graphs
    shared = torch.cuda.graph_pool_handle()
    aside = torch.cuda.Stream(device)
    for size in sorted(sizes, reverse=True):
        prepare(size)
        # Kernels are compiled and libraries set up in a run that is not captured.
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            step(size)
        torch.cuda.current_stream(device).wait_stream(aside)
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        # thread_local: the watchdog of NCCL asks about its events from a thread of its own.
        with torch.cuda.graph(graph, pool=shared, capture_error_mode="thread_local"):
            step(size)
        graphs[size] = graph
    torch.cuda.synchronize(device)
    return graphs
