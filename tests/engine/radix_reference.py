"""A radix-tree prefix cache, token by token and slot by slot: slow, plain, and no heap.

From the definitions alone: every eviction looks at every leaf, every match compares single tokens,
every slot of the pool has a number and is at every moment in exactly one place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rank = Callable[["Run"], Any]


class Run:
    """A node: tokens, their slots, and what the ranks read."""

    def __init__(self, above: Run | None, tokens: list[int], slots: list[int], now: int) -> None:
        self.above = above
        self.tokens = tokens
        self.slots = slots
        self.below: list[Run] = []
        self.hits = 0
        self.priority = 0
        self.holders = 0
        self.accessed = now
        self.created = now
        self.deepest = self.cached_above() + len(tokens)

    def cached_above(self) -> int:
        if self.above is None:
            return 0
        return self.above.cached_above() + len(self.above.tokens)

    def path(self) -> list[Run]:
        """Itself and all above, without the root."""
        return [] if self.above is None else [*self.above.path(), self]


def tail_optimized(threshold: int, next_prompt_estimate: int) -> Rank:
    def rank(run: Run) -> Any:
        enough = max(run.deepest + next_prompt_estimate - threshold, 0)
        return (-1 if run.cached_above() >= enough else 0, run.accessed)

    return rank


RANKS: dict[str, Rank] = {
    "lru": lambda run: run.accessed,
    "lfu": lambda run: (run.hits, run.accessed),
    "slru": lambda run: (run.hits >= 2, run.accessed),
    "fifo": lambda run: run.created,
    "mru": lambda run: -run.accessed,
    "filo": lambda run: -run.created,
    "priority": lambda run: (run.priority, run.accessed),
    "tlru": tail_optimized(6, 2),
}


class Row:
    """A request under way: its tokens, and the slot of each that has one."""

    def __init__(self, tokens: list[int], prompt: int, priority: int) -> None:
        self.tokens = tokens
        self.prompt = prompt
        self.priority = priority
        self.length = 0
        self.slots: list[int] = []
        self.shared = 0
        self.inserted = 0
        self.held: Run


class Reference:
    def __init__(self, capacity: int, page: int, rank: Rank, unified: bool) -> None:
        self.page = page
        self.rank = rank
        self.unified = unified
        self.now = 0
        self.root = Run(None, [], [], 0)
        self.capacity = capacity - capacity % page
        self.free = list(range(self.capacity))
        self.rows: list[Row] = []

    def runs(self) -> list[Run]:
        every: list[Run] = []
        waiting = [self.root]
        while waiting:
            run = waiting.pop()
            waiting += run.below
            every += run.below
        return every

    def size(self, held: bool) -> int:
        return sum(len(run.tokens) for run in self.runs() if (run.holders > 0) == held)

    def floor(self, tokens: int) -> int:
        return tokens // self.page * self.page

    def begin(self, tokens: list[int], prompt: int, priority: int) -> tuple[Row | None, list[Run]]:
        row = Row(tokens, prompt, priority)
        path = self.walk(tokens[: self.floor(prompt - 1)])
        row.slots = [slot for run in path for slot in run.slots]
        row.shared = len(row.slots)
        self.hold(row, path)
        gone, fits = self.allocate(row, prompt)
        if not fits:
            self.let_go(row)
            return None, gone
        self.rows.append(row)
        return row, gone

    def decode(self, row: Row, tokens: int) -> tuple[bool, list[Run]]:
        gone, fits = self.allocate(row, row.length + tokens)
        return fits, gone

    def checkpoint(self, row: Row) -> int:
        before = len(self.free)
        path = self.insert(row)
        self.let_go(row)
        self.hold(row, path)
        return len(self.free) - before

    def finish(self, row: Row) -> int:
        return self.checkpoint(row) + self.abandon(row)

    def abandon(self, row: Row) -> int:
        before = len(self.free)
        self.free += row.slots[row.shared :]
        self.let_go(row)
        self.rows.remove(row)
        return len(self.free) - before

    def hold(self, row: Row, path: list[Run]) -> None:
        for run in path:
            run.holders += 1
        row.held = path[-1] if path else self.root

    def let_go(self, row: Row) -> None:
        for run in row.held.path():
            run.holders -= 1

    def allocate(self, row: Row, length: int) -> tuple[list[Run], bool]:
        need = -(-length // self.page) * self.page - len(row.slots)
        gone: list[Run] = []
        while need > len(self.free):
            leaves = [run for run in self.runs() if not run.below and not run.holders]
            if not leaves:
                return gone, False
            victim = min(leaves, key=self.rank)
            assert victim.above is not None
            victim.above.below.remove(victim)
            self.free += victim.slots
            gone.append(victim)
        row.slots += [self.free.pop() for _ in range(need)]
        row.length = length
        return gone, True

    def walk(self, tokens: list[int]) -> list[Run]:
        """The runs of the longest cached prefix of whole pages, the last one split to fit."""
        self.now += 1
        path: list[Run] = []
        run = self.root
        while tokens:
            found = [child for child in run.below if self.agreed(child.tokens, tokens)]
            if not found:
                break
            (child,) = found
            child.accessed = self.now
            agreed = self.agreed(child.tokens, tokens)
            run = child if agreed == len(child.tokens) else self.split(child, agreed)
            path.append(run)
            tokens = tokens[agreed:]
            if run is not child:
                break
        return path

    def agreed(self, one: list[int], other: list[int]) -> int:
        agreed = 0
        for left, right in zip(one, other, strict=False):
            if left != right:
                break
            agreed += 1
        return self.floor(agreed)

    def split(self, run: Run, at: int) -> Run:
        assert run.above is not None
        upper = Run(run.above, run.tokens[:at], run.slots[:at], self.now)
        upper.hits, upper.priority, upper.holders = run.hits, run.priority, run.holders
        upper.deepest = run.deepest
        if self.unified:
            upper.created = run.created
        run.above.below.remove(run)
        run.above.below.append(upper)
        upper.below = [run]
        run.above = upper
        run.tokens, run.slots = run.tokens[at:], run.slots[at:]
        return upper

    def insert(self, row: Row) -> list[Run]:
        end = self.floor(row.length)
        path = self.walk(row.tokens[:end])
        depth = 0
        for run in path:
            depth += len(run.tokens)
            run.priority = max(run.priority, row.priority)
            run.hits += depth > row.inserted
        cached = depth
        if cached < end:
            self.now += 1
            above = path[-1] if path else self.root
            leaf = Run(above, row.tokens[cached:end], row.slots[cached:end], self.now)
            leaf.priority = row.priority
            leaf.hits = 1 if end > row.inserted else 0
            above.below.append(leaf)
            path.append(leaf)
            for run in path:
                run.deepest = max(run.deepest, end)
        self.free += row.slots[row.shared : cached]
        row.inserted = end
        prompt = self.floor(row.prompt)
        if 0 < prompt < end:
            for run in self.walk(row.tokens[:prompt]):
                run.priority = max(run.priority, row.priority + 1)
        path = path[-1].path() if path else []
        row.slots[:end] = [slot for run in path for slot in run.slots]
        row.shared = end
        return path

    def check(self) -> None:
        """Every slot is in exactly one place; whoever is held is held by a row."""
        places = list(self.free)
        for run in self.runs():
            assert run.tokens and len(run.tokens) == len(run.slots)
            assert len(run.tokens) % self.page == 0
            places += run.slots
        for row in self.rows:
            places += row.slots[row.shared :]
        assert sorted(places) == list(range(self.capacity))
        held = {id(run): 0 for run in self.runs()}
        for row in self.rows:
            for run in row.held.path():
                held[id(run)] += 1
        assert all(run.holders == held[id(run)] for run in self.runs())
