"""Policies that tell the blocks of a piece apart, by something that changes one way along it."""

from __future__ import annotations

from collections.abc import Callable

from engine.prefix import Piece


def alike_at_end(piece: Piece, value: Callable[[int], int]) -> int:
    """How many of the last blocks of `piece` have the value of the last one.

    `value` of a block never falls, or never rises, towards the end. O(log blocks).
    """
    last = piece.end - 1
    of_last = value(last)
    low, high = piece.start, last  # the first of them lies in [low, high]
    if low < high and value(low) == of_last:
        return piece.end - low  # mostly
    while low < high:
        middle = (low + high) // 2
        if value(middle) == of_last:
            high = middle
        else:
            low = middle + 1
    return piece.end - low
