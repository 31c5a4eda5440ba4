"""Blocks that a batch needs if it is scheduled again and again."""

from engine.batch import Batch
from engine.blocks import BlockManager
from engine.decoding import DecodeSet


def blocks_due(batch: Batch, blocks: BlockManager, decodes: DecodeSet, steps: int) -> int:
    """Blocks that `steps` more repeats of `batch` need."""
    due = decodes.blocks_due(steps) if batch.decoding else 0
    for seq, chunk in batch.prefills:
        due += blocks.growth(seq.base, chunk * steps)
    return due


def most_blocks_due(batch: Batch, blocks: BlockManager, steps: int) -> int:
    """No less than the blocks that `steps` more repeats of `batch` need, found faster."""
    block_tokens = blocks.block_tokens
    due = batch.decoding * (steps // block_tokens + 1)
    for _, chunk in batch.prefills:
        due += chunk * steps // block_tokens + 1
    return due


def steps_that_fit(batch: Batch, blocks: BlockManager, decodes: DecodeSet, steps: int) -> int:
    """For how many of `steps` more repeats of `batch` there are blocks."""
    free = blocks.free
    if blocks_due(batch, blocks, decodes, steps) <= free:
        return steps
    fits = 0
    while steps - fits > 1:
        middle = (fits + steps) // 2
        if blocks_due(batch, blocks, decodes, middle) > free:
            steps = middle
        else:
            fits = middle
    return fits
