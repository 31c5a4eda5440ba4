"""KV tiers below the GPU: which blocks lie in CPU memory and on disk, and what has to move.

Decides only; `engine.execution.offload` makes the copies, in the order decided here. A block is
known by its content (its key in the prefix index), so what was computed once is found again
whoever asks. A block that is loaded stays below as well: its next eviction costs no copy.
"""

from __future__ import annotations

from typing import Final

from engine.config import OffloadSettings
from engine.eviction import eviction_policy
from engine.eviction.protocol import CacheView, EvictionPolicy
from engine.prefix import Piece, PrefixIndex
from engine.sequence import Sequence
from engine.work import CPU, DISK, GPU, TIERS, Move, Place


class Tier:
    """The slots of one tier: free, held by a block, or in a caller's hands."""

    __slots__ = ("_born", "_eviction", "_free", "_pieces", "_pinned", "level", "slots")

    def __init__(self, level: int, slots: int, eviction: EvictionPolicy) -> None:
        """An empty tier at `level` with room for `slots` blocks."""
        self.level: Final[int] = level
        self.slots: int = slots
        self._free: list[int] = list(range(slots - 1, -1, -1))
        self._eviction: EvictionPolicy = eviction
        self._pieces: dict[int, Piece] = {}
        self._pinned: int = 0
        self._born: int = 0

    def __contains__(self, key: int) -> bool:
        return key in self._pieces

    @property
    def blocks(self) -> int:
        """Blocks that can be found here."""
        return len(self._pieces)

    @property
    def free(self) -> int:
        """Slots that hold nothing."""
        return len(self._free)

    def place(self, key: int) -> Place:
        """Where the block of that content lies."""
        return Place(self.level, self._pieces[key].names[0])

    def pin(self, key: int) -> None:
        """Keep a block from being evicted until as many calls of `unpin`."""
        piece = self._pieces[key]
        if piece.refs == 0:
            self._eviction.remove(piece)
            self._pinned += 1
        piece.refs += 1

    def unpin(self, key: int) -> None:
        """Undo `pin`; the block counts as just used."""
        piece = self._pieces[key]
        piece.refs -= 1
        if piece.refs == 0:
            self._pinned -= 1
            self._eviction.push(piece)

    def take(self) -> int:
        """A free slot, the caller's until `give` or `keep`; -1 if there is none."""
        return self._free.pop() if self._free else -1

    def give(self, slot: int) -> None:
        """Take a slot back, empty."""
        self._free.append(slot)

    def keep(self, key: int, owner: Sequence, block: int, slot: int) -> None:
        """From now on `slot` holds block number `block` of `owner`, of that content."""
        piece = Piece(block, block + 1, owner)
        piece.refs = 0
        piece.key = key
        piece.names = [slot]
        self._born += 1
        piece.born = self._born
        self._pieces[key] = piece
        self._eviction.push(piece)

    def evict(self) -> Piece | None:
        """Forget a block; its slot is the caller's. None where all there are are pinned."""
        if len(self._pieces) == self._pinned:
            return None
        piece = self._eviction.victim()
        piece.end = piece.start
        self._eviction.evicted(piece, 1)
        del self._pieces[piece.key]
        return piece


class Tiers:
    """All tiers below the GPU, nearest first, and the copies that are due."""

    __slots__ = (
        "_fresh",
        "_later",
        "_moves",
        "_swapped",
        "_through",
        "_whole_blocks",
        "dropped",
        "loaded",
        "saved",
        "spilled",
        "swapped",
        "tiers",
    )

    def __init__(
        self, settings: OffloadSettings, block_bytes: int, *, whole_blocks: bool = False
    ) -> None:
        """Tiers with room for as many blocks of `block_bytes` as the settings' bytes hold.

        `whole_blocks`: of a swapped sequence only full blocks can be copied (int4_channel).
        """
        rooms = ((CPU, settings.cpu_bytes), (DISK, settings.disk_bytes))
        self.tiers: list[Tier] = [
            Tier(
                level,
                size // block_bytes,
                eviction_policy(settings.eviction, CacheView(size // block_bytes)),
            )
            for level, size in rooms
            if size >= block_bytes
        ]
        self._through: bool = settings.write == "through"
        self._whole_blocks: bool = whole_blocks
        self._moves: list[Move] = []
        self._later: list[Move] = []
        self._fresh: list[tuple[Tier, int]] = []
        """Blocks the coming step computes, pinned until it is launched."""
        self._swapped: dict[Sequence, list[int]] = {}
        """Slots of the CPU tier that hold a preempted sequence's blocks, in order."""
        self.saved: int = 0
        """Blocks copied down from the GPU, those of swapped sequences included."""
        self.loaded: int = 0
        """Blocks copied up to the GPU, those of swapped sequences included."""
        self.spilled: int = 0
        """Blocks copied from one tier to the next."""
        self.dropped: int = 0
        """Blocks that found no room below, or lost it."""
        self.swapped: int = 0
        """Sequences swapped out."""

    def take_moves(self) -> tuple[tuple[Move, ...], tuple[Move, ...]]:
        """The copies due before and after the step that was just scheduled; they count as made."""
        before, after = tuple(self._moves), tuple(self._later)
        self._moves.clear()
        self._later.clear()
        for tier, key in self._fresh:
            tier.unpin(key)
        self._fresh.clear()
        return before, after

    # ---- by content

    def reach(self, seq: Sequence, start: int, limit: int, prefix: PrefixIndex) -> list[int]:
        """Keys of the blocks of `seq` from `start` on that lie in a tier, up to `limit`."""
        keys: list[int] = []
        for block in range(start, min(limit, seq.shared_blocks)):
            key = prefix.key(seq, block)
            if self._tier_of(key) is None:
                break
            keys.append(key)
        return keys

    def pin(self, keys: list[int]) -> None:
        """Keep blocks that are about to be loaded where they are."""
        for key in keys:
            tier = self._tier_of(key)
            assert tier is not None
            tier.pin(key)

    def load(self, keys: list[int], names: list[int]) -> None:
        """Copy pinned blocks up into the GPU's blocks `names`, and let them go."""
        self.loaded += len(keys)
        for key, name in zip(keys, names, strict=True):
            tier = self._tier_of(key)
            assert tier is not None
            self._moves.append(Move(tier.place(key), Place(GPU, name)))
            tier.unpin(key)

    def evicted(self, key: int, owner: Sequence, block: int, name: int) -> None:
        """The GPU gives up block `name`; unless it goes down when computed, it goes down now."""
        if self._through:
            return
        slot = self._keep(key, owner, block)
        if slot >= 0:
            self._moves.append(Move(Place(GPU, name), Place(self.tiers[0].level, slot)))

    def computed(
        self, key: int, owner: Sequence, block: int, name: int, *, leaving: bool = False
    ) -> None:
        """The coming step fills block `name`: with write-through, it goes down after the step.

        `leaving`: it is filled already, its owner gives it up, and the coming step may use it for
        something else: it goes down before.
        """
        if not self._through:
            return
        slot = self._keep(key, owner, block)
        if slot < 0:
            return
        first = self.tiers[0]
        move = Move(Place(GPU, name), Place(first.level, slot))
        if leaving:
            self._moves.append(move)
        else:
            first.pin(key)
            self._fresh.append((first, key))
            self._later.append(move)

    def lose(self, level: int) -> None:
        """Do without a tier from the next step on, as where its disk is full or read-only."""
        self.tiers = [tier for tier in self.tiers if tier.level != level]

    def _keep(self, key: int, owner: Sequence, block: int) -> int:
        """A slot of the first tier that is to hold the block; -1 if none is or need be."""
        tier = self._tier_of(key)
        if tier is not None:
            tier.pin(key)
            tier.unpin(key)
            return -1
        slot = self._room(0)
        if slot < 0:
            self.dropped += 1
            return -1
        self.saved += 1
        self.tiers[0].keep(key, owner, block, slot)
        return slot

    def _tier_of(self, key: int) -> Tier | None:
        for tier in self.tiers:
            if key in tier:
                return tier
        return None

    def _room(self, depth: int) -> int:
        """An empty slot of the tier at `depth`, by moving a block to the next if need be."""
        if depth == len(self.tiers):
            return -1
        tier = self.tiers[depth]
        slot = tier.take()
        if slot >= 0:
            return slot
        piece = tier.evict()
        if piece is None:
            return -1
        slot = piece.names[0]
        lower = self._room(depth + 1)
        if lower < 0:
            self.dropped += 1
            return slot
        below = self.tiers[depth + 1]
        assert piece.owner is not None
        below.keep(piece.key, piece.owner, piece.start, lower)
        self.spilled += 1
        self._moves.append(Move(Place(tier.level, slot), Place(below.level, lower)))
        return slot

    # ---- by sequence

    def swap_out(self, seq: Sequence, written: int, block_tokens: int) -> int:
        """Copy the `written` tokens of a sequence that is preempted to CPU memory.

        Returns how many of them that covers: none if there is no room.
        """
        if not self.tiers or self.tiers[0].level != CPU:
            return 0
        if self._whole_blocks:
            written -= written % block_tokens
        names = seq.table[: -(-written // block_tokens)]
        tier = self.tiers[0]
        slots: list[int] = []
        for _ in names:
            slot = self._room(0)
            if slot < 0:
                for taken in slots:
                    tier.give(taken)
                return 0
            slots.append(slot)
        for name, slot in zip(names, slots, strict=True):
            self._moves.append(Move(Place(GPU, name), Place(CPU, slot)))
        self._swapped[seq] = slots
        self.swapped += 1
        self.saved += len(slots)
        return written

    def swap_in(self, seq: Sequence, start: int, names: list[int]) -> None:
        """Copy a sequence's blocks from number `start` on back into the GPU's blocks `names`."""
        slots = self._swapped[seq]
        for slot, name in zip(slots[start:], names, strict=True):
            self._moves.append(Move(Place(CPU, slot), Place(GPU, name)))
        self.loaded += len(names)
        self.forget(seq)

    def forget(self, seq: Sequence) -> None:
        """Free what a swapped sequence holds."""
        for slot in self._swapped.pop(seq, []):
            self.tiers[0].give(slot)

    def summary(self) -> dict[str, int]:
        """Counts of blocks so far, and blocks found in each tier now."""
        kept = {f"{TIERS[tier.level]}_blocks": tier.blocks for tier in self.tiers}
        return {
            "saved_blocks": self.saved,
            "loaded_blocks": self.loaded,
            "spilled_blocks": self.spilled,
            "dropped_blocks": self.dropped,
            "swapped_sequences": self.swapped,
            **kept,
        }
