"""Links between a GPU and the tiers below it, on the simulated clock.

A link carries one block at a time, first come first served, in both directions. When a transfer
ends is then known as soon as it is asked for, and so is how long a step has to wait; and what is
read after it was written over the same link is there. With a fair share for everyone, each new
transfer would put off the ends of those under way, of which steps have been told already. To
whoever waits for all of its blocks, the two differ only in who waits: the last of several that
begin together ends at the same time either way.

A link leads from the GPU to its tier; what goes from one tier to the next goes over the link of
the lower one. Blocks on their way to disk or pool leave from a staging area in CPU memory, so that
nobody waits for them, unless it is full.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from heapq import heappop, heappush

from calibration.copies import CopySettings
from calibration.costs import PICOSECONDS
from engine.work import CPU, DISK, GPU, REMOTE, Move, Place


class Link:
    """Transfers to and from one tier, and what of it is there. Times are in picoseconds."""

    def __init__(
        self, block_ps: int, latency_ps: int = 0, staged_blocks: int | None = None
    ) -> None:
        """A link at rest.

        Args:
            block_ps: how long a block keeps the link busy.
            latency_ps: how much later it is there; this keeps nobody else waiting.
            staged_blocks: how many may be on their way to the tier while their source is used for
                something else; None: there is no staging, their source is in use to the end.
        """
        self.block_ps = block_ps
        self._latency_ps = latency_ps
        self._free_ps = 0
        self._arrived: dict[int, int] = {}
        """By slot of the tier: when its block was, or will be, there."""
        self._leaves: dict[int, int] = {}
        """By slot of the tier: until when its block is needed there to be passed on below."""
        self._staged = staged_blocks is not None
        self._leaving: deque[int] = deque(maxlen=(staged_blocks or 0) + 1)
        """Ends of the latest writes: the staging area holds all of them but the first."""
        self._promised: list[tuple[int, int, int]] = []
        """A heap of (time, number, slot): writes of blocks that are still being computed."""
        self._awaited: dict[int, int] = {}
        """By slot: when the block of the last promised write to it is ready."""
        self._promises = 0

    def read(self, slot: int, ready_ps: int) -> int:
        """Begin to read a slot, at `ready_ps` and once its block is there at the soonest; returns
        when it is read."""
        begin = max(ready_ps, self.arrival(slot, ready_ps), self._free_ps)
        self._free_ps = begin + self.block_ps
        return self._free_ps + self._latency_ps

    def write(self, slot: int, ready_ps: int) -> int:
        """Begin to write a slot, at `ready_ps` at the soonest; returns when its source is free."""
        self._catch_up(ready_ps)
        return self._write(slot, ready_ps)

    def _write(self, slot: int, ready_ps: int) -> int:
        begin = max(ready_ps, self._free_ps, self._leaves.pop(slot, 0))
        self._free_ps = begin + self.block_ps
        end = self._arrived[slot] = self._free_ps + self._latency_ps
        if not self._staged:
            return end
        self._leaving.append(end)
        full = len(self._leaving) == self._leaving.maxlen
        return max(ready_ps, self._leaving[0]) if full else ready_ps

    def promise(self, slot: int, ready_ps: int) -> None:
        """Write a slot at a time to come, behind what others ask for until then."""
        self._promises += 1
        self._awaited[slot] = ready_ps
        heappush(self._promised, (ready_ps, self._promises, slot))

    def _catch_up(self, until_ps: int, slot: int = -1) -> None:
        """Begin the promised writes that are ready by then, and all up to that of `slot`."""
        while self._promised and (self._promised[0][0] <= until_ps or slot in self._awaited):
            ready_ps, _, due = heappop(self._promised)
            if self._awaited.get(due) == ready_ps:
                del self._awaited[due]
            self._write(due, ready_ps)

    def leave(self, slot: int, until_ps: int) -> None:
        """Keep a slot from being written until what lies there has been passed on."""
        self._leaves[slot] = max(until_ps, self._leaves.get(slot, 0))

    def arrival(self, slot: int, now_ps: int) -> int:
        """When the block of a slot is there, which somebody waits for from now on."""
        self._catch_up(now_ps, slot)
        return self._arrived.get(slot, 0)

    def foreseen(self, slots: Iterable[int], now_ps: int) -> list[int]:
        """When each of `slots`, were they read now in that order, would be; asks for nothing."""
        self._catch_up(now_ps)
        free, ends = self._free_ps, list[int]()
        for slot in slots:
            there = self._awaited.get(slot, self._arrived.get(slot, 0))
            free = max(now_ps, there, free) + self.block_ps
            ends.append(free + self._latency_ps)
        return ends


class Links:
    """The links of one replica; that to the remote pool is the same for all."""

    def __init__(self, links: Mapping[int, Link]) -> None:
        """`links` by the level of the tier they lead to."""
        self.links = links

    def carry(self, moves: Iterable[Move], ready_ps: int, now_ps: int) -> int:
        """Begin moves, in order, at `ready_ps`, which may be later than now.

        Returns when the GPU's blocks among them may be read and overwritten.
        """
        done = ready_ps
        for move in moves:
            end = self.carry_one(move, ready_ps, now_ps)
            if GPU in (move.source.level, move.target.level):
                done = max(done, end)
        return done

    def carry_one(self, move: Move, ready_ps: int, now_ps: int) -> int:
        """Begin one move; returns when its upper end may be read and overwritten."""
        source, target = move
        if source.level > target.level:
            return self.links[source.level].read(source.slot, ready_ps)
        upper = None if source.level == GPU else self.links[source.level]
        if upper is not None:
            ready_ps = max(ready_ps, upper.arrival(source.slot, ready_ps))
        link = self.links[target.level]
        if target.level == REMOTE and ready_ps > now_ps:
            link.promise(target.slot, ready_ps)
            return ready_ps
        free_ps = link.write(target.slot, ready_ps)
        if upper is not None:
            upper.leave(source.slot, free_ps)
        return free_ps

    def foreseen(self, places: list[Place], now_ps: int) -> list[int]:
        """When the first, the first two ... of the blocks at `places` would all be loaded, if they
        were asked for now; changes nothing."""
        slots: dict[int, list[int]] = {}
        for level, slot in places:
            slots.setdefault(level, []).append(slot)
        ends = {
            level: iter(self.links[level].foreseen(its, now_ps)) for level, its in slots.items()
        }
        done, all_done = now_ps, list[int]()
        for level, _ in places:
            done = max(done, next(ends[level]))
            all_done.append(done)
        return all_done


def link_to(level: int, copies: CopySettings, block_bytes: int, tp: int) -> Link:
    """The link of a tier.

    Args:
        level: the tier's.
        copies: rates.
        block_bytes: of a block as it lies below, on each of the GPUs that share a replica.
        tp: GPUs of a replica. Each has a link of its own to CPU memory; they share the others.
    """
    if level == CPU:
        return Link(_ps(copies.block_s + block_bytes / copies.cpu_bytes_per_s))
    block_bytes *= tp
    staged_blocks = copies.staging_bytes // block_bytes
    if level == DISK:
        rate, latency_s = copies.disk_bytes_per_s, 0.0
    else:
        rate, latency_s = copies.remote_bytes_per_s, copies.remote_latency_s
    return Link(_ps(copies.block_s + block_bytes / rate), _ps(latency_s), staged_blocks)


def _ps(seconds: float) -> int:
    return round(seconds * PICOSECONDS)
