"""A model split over processes, as a test runs it: what each rank computes, as a file."""

import multiprocessing
from pathlib import Path

import torch
import torch.distributed as dist

from tests.engine.execution.steps import Stepper, load

SECONDS = 90
"""Until ranks that hang are ended."""


def logits_of_ranks(
    folders: list[Path], texts: list[list[int]], tp: int, scratch: Path
) -> list[list[torch.Tensor]]:
    """Of each rank and folder, what `logits_of_texts` gives."""
    spawn = multiprocessing.get_context("spawn")
    ranks = [
        spawn.Process(target=_rank, args=(rank, tp, folders, texts, scratch), daemon=True)
        for rank in range(tp)
    ]
    for process in ranks:
        process.start()
    try:
        for process in ranks:
            process.join(SECONDS)
        assert [process.exitcode for process in ranks] == [0] * tp
    finally:
        for process in ranks:
            process.kill()
    return [torch.load(scratch / f"{rank}.pt") for rank in range(tp)]


def logits_of_texts(stepper: Stepper, texts: list[list[int]]) -> torch.Tensor:
    """[tokens, vocab]: all but the last token of each text prefilled, then those decoded."""
    first = stepper.step(prefills=[(row, text[:-1]) for row, text in enumerate(texts, 1)])
    last = stepper.step(decodes=[(row, text[-1]) for row, text in enumerate(texts, 1)])
    return torch.cat((first, last))


def _rank(rank: int, tp: int, folders: list[Path], texts: list[list[int]], scratch: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{scratch / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=tp)
    found = [
        logits_of_texts(Stepper(load(folder, rank=rank, tp=tp, group=dist.group.WORLD)), texts)
        for folder in folders
    ]
    torch.save(found, scratch / f"{rank}.pt")
    dist.destroy_process_group()
