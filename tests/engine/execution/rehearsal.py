"""Steps and copies that contradict no promise of the scheduler, and what they must lead to.

A block's content is a number that fills it. The model keeps the number of every place as if each
step and each copy were done before the next began.
"""

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import NamedTuple

import pytest
import torch

from engine.config import OffloadSettings
from engine.execution.kvcache import KvPool
from engine.execution.offload import Offloader
from engine.kvformats import block_layout
from engine.work import CPU, DISK, GPU, Move, Place

HOST = torch.device("cpu")


def pool_of(blocks: int, *, head_dim: int = 4, device: torch.device = HOST) -> KvPool:
    """Blocks of 16 x head_dim bytes: keys and values of one token, in 2 layers."""
    layout = block_layout("fp32", 2, 1, head_dim, 1)
    return KvPool(layout, blocks, device=device, dtype=torch.float32, rows=1)


def offload_settings(pool: KvPool, slots: tuple[int, int, int], folder) -> OffloadSettings:
    """Room for that many blocks per level, and a little that holds none."""
    size, odd = pool.layout.block_bytes, pool.layout.block_bytes - 1
    return OffloadSettings(
        cpu_bytes=slots[CPU] * size + odd,
        disk_bytes=slots[DISK] * size + odd,
        disk_path=str(folder),
    )


def fill(pool: KvPool, block: int, number: int) -> None:
    pool.buffer[block].view(torch.int64).fill_(number)


def numbers(pool: KvPool) -> list[int]:
    """What each block holds; all of it must be the same."""
    filled = pool.buffer.view(torch.int64).cpu()
    assert (filled == filled[:, :1]).all()
    return filled[:, 0].tolist()


@contextmanager
def largest_file(size_bytes: int):
    """The kernel refuses to write beyond this offset, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def slow_disk(random: Random):
    """Some reads and writes take long, and some are done piece by piece."""
    write, read = os.pwrite, os.preadv

    def nap() -> None:
        time.sleep(random.choice([0, 0, 0.001, 0.004]))

    def some(block) -> int:
        return random.choice([len(block), len(block), 1 + random.randrange(len(block))])

    def slow_write(descriptor, block, offset):
        nap()
        return write(descriptor, block[: some(block)], offset)

    def slow_read(descriptor, blocks, offset):
        nap()
        (block,) = blocks
        return read(descriptor, [block[: some(block)]], offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", slow_write)
        patch.setattr(os, "preadv", slow_read)
        yield


class Step(NamedTuple):
    before: list[Move]
    unsettled: bool
    reads: dict[int, int]
    """What the step must find in these blocks."""
    writes: dict[int, int]
    after: list[Move]


class Model:
    """Where each number lies."""

    def __init__(self, slots: tuple[int, int, int], random: Random) -> None:
        self.slots = slots
        self.random = random
        self.at: dict[Place, int] = {Place(GPU, block): 0 for block in range(slots[GPU])}
        self.last = 0

    def new(self) -> int:
        self.last += 1
        return self.last

    def move(self, move: Move) -> Move:
        self.at[move.target] = self.at[move.source]
        return move

    def some_moves(self, most: int, held: frozenset[int] = frozenset()) -> list[Move]:
        """From any tier to any other, leaving the GPU's blocks `held` alone."""
        return [self.move(move) for _ in range(most) if (move := self.some_move(held))]

    def some_move(self, held: frozenset[int]) -> Move | None:
        source = self.random.choice(list(self.at))
        levels = [n for n in (GPU, CPU, DISK) if n != source.level and self.slots[n]]
        if not levels:
            return None
        level = self.random.choice(levels)
        target = Place(level, self.random.randrange(self.slots[level]))
        if any(level == GPU and slot in held for level, slot in (source, target)):
            return None
        return Move(source, target)

    def steps(self, count: int, *, asynchronous: bool) -> Iterator[Step]:
        """Random steps; asynchronous: each is scheduled while the one before is under way."""
        under_way: frozenset[int] = frozenset()
        filled: frozenset[int] = frozenset()
        blocks = range(self.slots[GPU])
        below = CPU if self.slots[CPU] else DISK
        for _ in range(count):
            unsettled = self.random.random() < 0.2
            if unsettled or not asynchronous:
                under_way = filled = frozenset()
            before = self.some_moves(self.random.choice([0, 0, 1, 3, 9]), under_way)
            chosen = self.random.sample(blocks, self.random.randrange(len(blocks)))
            reads = {block: self.at[GPU, block] for block in chosen}
            chosen = self.random.sample(blocks, self.random.randrange(len(blocks)))
            writes = {block: self.new() for block in chosen if block not in filled}
            self.at |= {Place(GPU, block): number for block, number in writes.items()}
            after: list[Move] = []
            for block in writes:
                if self.slots[below] and self.random.random() < 0.5:
                    slot = self.random.randrange(self.slots[below])
                    after.append(self.move(Move(Place(GPU, block), Place(below, slot))))
            yield Step(before, unsettled, reads, writes, after)
            under_way = frozenset(reads) | frozenset(writes)
            filled = frozenset(move.source.slot for move in after)

    def check(self, offloader: Offloader, pool: KvPool, settle: Callable[[], None]) -> None:
        """Compare all places with the model, those below the GPU by loading them."""
        settle()
        assert numbers(pool) == [self.at[GPU, block] for block in range(pool.num_blocks)]
        for place, number in list(self.at.items()):
            if place.level != GPU:
                offloader.before([self.move(Move(place, Place(GPU, 0)))], True)
                settle()
                assert numbers(pool)[0] == number, place

    def run_at_once(self, offloader: Offloader, pool: KvPool, lists: int) -> None:
        """Random lists of any moves; on a CPU each step is done when it is launched."""
        size, random = pool.layout.block_bytes, self.random
        for _ in range(lists):
            before = self.some_moves(random.choice([0, 1, 5, 20]))
            assert offloader.before(before, random.random() < 0.5) == len(before) * size
            for block in range(pool.num_blocks):
                if random.random() < 0.5:
                    self.at[Place(GPU, block)] = number = self.new()
                    fill(pool, block, number)
            after = self.some_moves(random.choice([0, 1, 5]))
            assert offloader.after(after) == len(after) * size
