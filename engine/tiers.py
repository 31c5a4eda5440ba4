"""KV tiers below the GPU: which blocks lie in CPU memory, on disk, in a pool, and what has to move.

Decides only; `engine.execution.offload` makes the copies, in the order decided here, and
`sim.tiers` lets them take their time. A block is known by its content (its key in the prefix
index), so what was computed once is found again whoever asks. A block that is loaded stays below
as well: its next eviction costs no copy.

The remote pool is one tier that the Tiers of all replicas of a cluster have as their last: what
one of them put there, the others find. It may hold what a replica's own tiers hold too.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from engine.config import OffloadSettings
from engine.eviction import eviction_policy
from engine.eviction.protocol import CacheView, EvictionPolicy
from engine.moment import Moment
from engine.prefix import Hit, Piece, PrefixIndex
from engine.sequence import Sequence
from engine.work import CPU, DISK, GPU, REMOTE, TIERS, Move, Place


class Tier:
    """The slots of one tier: free, held by a block, or in a caller's hands."""

    __slots__ = (
        "_begin",
        "_born",
        "_eviction",
        "_expired",
        "_free",
        "_pieces",
        "_pinned",
        "level",
        "slots",
    )

    def __init__(self, level: int, slots: int, eviction: EvictionPolicy) -> None:
        """An empty tier at `level` with room for `slots` blocks."""
        self.level: Final[int] = level
        self.slots: int = slots
        self._free: list[int] = list(range(slots - 1, -1, -1))
        self._eviction: EvictionPolicy = eviction
        self._begin: Any = getattr(eviction, "begin", None)
        self._expired: Any = getattr(eviction, "expired", None)
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

    def unpin(self, key: int, hits: int = 0) -> None:
        """Undo `pin`; the block counts as just used, and as found so many times more."""
        piece = self._pieces[key]
        piece.hits += hits
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

    def newcomer(self, key: int, owner: Sequence, block: int) -> Piece:
        """Block number `block` of `owner`, which is to be kept here if room is found."""
        piece = Piece(block, block + 1, owner)
        piece.refs = 0
        piece.key = key
        if self._begin is not None:
            self._begin(piece)
        return piece

    def keep(self, piece: Piece, slot: int) -> None:
        """From now on `slot` holds that newcomer."""
        piece.names = [slot]
        self._born += 1
        piece.born = self._born
        self._pieces[piece.key] = piece
        self._eviction.push(piece)

    def give_up_expired(self) -> int:
        """Empty the slots of what nobody may find any more; returns how many."""
        if self._expired is None:
            return 0
        count = 0
        piece = self._expired()
        while piece is not None:
            self._forget(piece)
            self.give(piece.names[0])
            count += 1
            piece = self._expired()
        return count

    def evict(self) -> Piece | None:
        """Forget a block; its slot is the caller's. None where all there are are pinned."""
        if len(self._pieces) == self._pinned:
            return None
        piece = self._eviction.victim()
        self._forget(piece)
        return piece

    def _forget(self, piece: Piece) -> None:
        piece.end = piece.start
        self._eviction.evicted(piece, 1)
        del self._pieces[piece.key]


class Worth(Protocol):
    """Knows what copies and computing cost, which the scheduler does not."""

    def blocks_to_load(self, seq: Sequence, start: int, places: list[Place]) -> int:
        """How many of the blocks of `seq` from number `start` on, which lie at `places`, should be
        loaded; the others are computed."""
        ...

    def is_worth_keeping(self, block: int, level: int) -> bool:
        """Whether block number `block` of a sequence should be copied to that tier at all."""
        ...


def room_below(
    level: int, size_bytes: int, block_bytes: int, eviction: str, moment: Moment
) -> Tier | None:
    """A tier that holds nothing yet; None where not one block fits.

    Raises:
        ConfigError: there is no such eviction policy.
    """
    slots = size_bytes // block_bytes
    if not slots:
        return None
    return Tier(level, slots, eviction_policy(eviction, CacheView(slots, moment=moment)))


class Tiers:
    """All tiers below the GPU, nearest first, and the copies that are due."""

    __slots__ = (
        "_arriving",
        "_due",
        "_early",
        "_fresh",
        "_later",
        "_moves",
        "_origins",
        "_remote",
        "_swapped",
        "_through",
        "_unpublished",
        "_whole_blocks",
        "computed_tokens",
        "dropped",
        "hit_tokens",
        "loaded",
        "moment",
        "prefetch_share",
        "saved",
        "spilled",
        "swapped",
        "tiers",
        "worth",
    )

    def __init__(
        self,
        settings: OffloadSettings,
        block_bytes: int,
        *,
        whole_blocks: bool = False,
        remote: Tier | None = None,
        moment: Moment | None = None,
    ) -> None:
        """Tiers with room for as many blocks of `block_bytes` as the settings' bytes hold.

        Args:
            settings: `remote_bytes` is not looked at.
            block_bytes: of a block as it lies below.
            whole_blocks: of a swapped sequence only full blocks can be copied (int4_channel).
            remote: the pool shared with other replicas, which store the same blocks there.
            moment: the time.

        Raises:
            ConfigError: there is no such eviction policy.
        """
        self.moment: Moment = moment or Moment()
        """The time, which the scheduler that has these tiers goes by too."""
        own = ((CPU, settings.cpu_bytes), (DISK, settings.disk_bytes))
        tiers = [
            room_below(level, size, block_bytes, settings.eviction, self.moment)
            for level, size in own
        ]
        self.tiers: list[Tier] = [tier for tier in (*tiers, remote) if tier is not None]
        self.worth: Worth | None = None
        """Asked before copies are made; None: all that can be kept and loaded is."""
        early = settings.prefetch == "on_arrival"
        self.prefetch_share: float = settings.prefetch_share if early else 0.0
        """Most of the GPU's blocks that are held for requests which still wait."""
        self._remote: Tier | None = remote
        self._through: bool = settings.write == "through"
        self._whole_blocks: bool = whole_blocks
        self._moves: list[Move] = []
        self._later: list[Move] = []
        self._early: list[Move] = []
        self._origins: dict[Sequence, tuple[int, list[int]]] = {}
        """Of waiting sequences: the first block loaded early, and from which level each came."""
        self._arriving: dict[int, None] = {}
        """Blocks of the GPU that are being loaded early, as far as no step has waited for them."""
        self._due: list[int] = []
        """Those of them that the coming step has to wait for."""
        self._fresh: list[tuple[Tier, int]] = []
        """Blocks the coming step computes, pinned until it is launched."""
        self._unpublished: list[tuple[int, Sequence, int]] = []
        """Blocks written through since the last step was launched, that the pool is to have too."""
        self._swapped: dict[Sequence, list[int]] = {}
        """Slots of the CPU tier that hold a preempted sequence's blocks, in order."""
        self.hit_tokens: list[int] = [0] * len(TIERS)
        """Prompt tokens that first admissions found, by the level where they lay."""
        self.computed_tokens: int = 0
        """Prompt tokens that they did not find."""
        self.saved: int = 0
        """Blocks copied down from the GPU, those of swapped sequences included."""
        self.loaded: int = 0
        """Blocks copied up to the GPU, those of swapped sequences included."""
        self.spilled: int = 0
        """Blocks copied from one tier to another below it."""
        self.dropped: int = 0
        """Blocks that found no room below, or lost it."""
        self.swapped: int = 0
        """Sequences swapped out."""

    def take_moves(self) -> tuple[tuple[Move, ...], tuple[Move, ...]]:
        """The copies due before and after the step that was just scheduled; they count as made.

        Early ones that nobody took come first.
        """
        if self._unpublished:
            self._publish()
        before, after = (*self._early, *self._moves), tuple(self._later)
        self._early.clear()
        self._moves.clear()
        self._later.clear()
        self._due.clear()
        for tier, key in self._fresh:
            tier.unpin(key)
        self._fresh.clear()
        return before, after

    def take_early(self) -> tuple[Move, ...]:
        """The copies that may begin between two steps; they count as begun."""
        early = tuple(self._early)
        self._early.clear()
        return early

    def take_due(self) -> list[int]:
        """Blocks of the GPU whose early copies have to be done before the step that was just
        scheduled."""
        due = list(self._due)
        self._due.clear()
        return due

    # ---- by content

    def reach(self, seq: Sequence, start: int, limit: int, prefix: PrefixIndex) -> tuple[int, ...]:
        """Keys of the blocks of `seq` from `start` on that lie in a tier, up to `limit`."""
        for tier in self.tiers:
            self.dropped += tier.give_up_expired()
        keys: list[int] = []
        places: list[Place] = []
        for block in range(start, min(limit, seq.shared_blocks)):
            key = prefix.key(seq, block)
            tier = self._tier_of(key)
            if tier is None:
                break
            keys.append(key)
            places.append(tier.place(key))
        if keys and self.worth is not None:
            del keys[self.worth.blocks_to_load(seq, start, places) :]
        return tuple(keys)

    def count(self, seq: Sequence, hit: Hit, block_tokens: int) -> None:
        """Note where a sequence that is admitted for the first time finds its prefix."""
        if seq.preemptions:
            return
        start, origins = self._origins.get(seq, (0, []))
        origins = origins[: max(0, hit.blocks - start)]
        for level in origins:
            self.hit_tokens[level] += block_tokens
        self.hit_tokens[GPU] += (hit.blocks - len(origins)) * block_tokens
        for key in hit.below:
            tier = self._tier_of(key)
            assert tier is not None
            self.hit_tokens[tier.level] += block_tokens
        found = (hit.blocks + len(hit.below)) * block_tokens
        self.computed_tokens += seq.prompt_tokens - found

    def pin(self, keys: tuple[int, ...]) -> None:
        """Keep blocks that are about to be loaded where they are."""
        for key in keys:
            tier = self._tier_of(key)
            assert tier is not None
            tier.pin(key)

    def load(self, keys: tuple[int, ...], names: list[int]) -> None:
        """Copy pinned blocks up into the GPU's blocks `names`, and let them go."""
        self.loaded += len(keys)
        for key, name in zip(keys, names, strict=True):
            tier = self._tier_of(key)
            assert tier is not None
            self._moves.append(Move(tier.place(key), Place(GPU, name)))
            tier.unpin(key, hits=1)

    def load_early(
        self, seq: Sequence, start: int, keys: tuple[int, ...], names: list[int]
    ) -> None:
        """As `load`, between two steps, for a sequence that waits: its blocks from `start` on.

        What made room for them goes down first, and before it what was left to copy.
        """
        levels: list[int] = []
        for key in keys:
            tier = self._tier_of(key)
            assert tier is not None
            levels.append(tier.level)
        self.load(keys, names)
        self._early += self._moves
        self._moves.clear()
        self._origins[seq] = start, levels
        self._arriving.update(dict.fromkeys(names))

    def need(self, names: list[int]) -> None:
        """The coming step reads, or may overwrite, these blocks of the GPU."""
        if not self._arriving:
            return
        for name in names:
            if name in self._arriving:
                del self._arriving[name]
                self._due.append(name)

    def let_go(self, seq: Sequence, names: list[int]) -> None:
        """Blocks that were loaded early for a sequence are no longer held for it."""
        self._origins.pop(seq, None)
        self.need(names)

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
        first = self.tiers[0] if self.tiers else None
        if first is None or (leaving and first is self._remote):
            return  # others could look for it in the pool before the coming step puts it there
        slot = self._keep(key, owner, block)
        if slot < 0:
            return
        moves = self._moves if leaving else self._later
        moves.append(Move(Place(GPU, name), Place(first.level, slot)))
        if not leaving:
            first.pin(key)
            self._fresh.append((first, key))
        if self._remote is not None and self._remote is not first:
            self._unpublished.append((key, owner, block))

    def _publish(self) -> None:
        """Copy what was written through to this replica's first tier on to the pool."""
        first, remote = self.tiers[0], self._remote
        assert remote is not None
        for key, owner, block in self._unpublished:
            if key not in first or key in remote or not self._is_worth_keeping(block, REMOTE):
                continue
            piece = remote.newcomer(key, owner, block)
            slot = self._room(len(self.tiers) - 1)
            if slot < 0:
                continue
            remote.keep(piece, slot)
            self.spilled += 1
            self._later.append(Move(first.place(key), Place(REMOTE, slot)))
        self._unpublished.clear()

    def lose(self, level: int) -> None:
        """Do without a tier from the next step on, as where its disk is full or read-only."""
        self.tiers = [tier for tier in self.tiers if tier.level != level]

    def _keep(self, key: int, owner: Sequence, block: int) -> int:
        """A slot of the first tier that is to hold the block; -1 if none is or need be."""
        if not self.tiers:
            return -1
        first = self.tiers[0]
        tier = self._tier_of(key)
        if tier is not None:
            tier.pin(key)
            tier.unpin(key)
            if tier is first or tier is not self._remote:
                return -1
        if not self._is_worth_keeping(block, first.level):
            return -1
        piece = first.newcomer(key, owner, block)
        slot = self._room(0)
        if slot < 0:
            self.dropped += 1
            return -1
        self.saved += 1
        first.keep(piece, slot)
        return slot

    def _is_worth_keeping(self, block: int, level: int) -> bool:
        return self.worth is None or self.worth.is_worth_keeping(block, level)

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
        self._spill(piece, Place(tier.level, slot), depth + 1)
        return slot

    def _spill(self, piece: Piece, source: Place, depth: int) -> None:
        """Find a block that leaves its tier a place in the one at `depth`, or drop it."""
        below = self.tiers[depth] if depth < len(self.tiers) else None
        if below is not None and piece.key in below:  # the pool has it from another replica
            below.pin(piece.key)
            below.unpin(piece.key)
            return
        owner = piece.owner
        assert owner is not None
        if below is None or not self._is_worth_keeping(piece.start, below.level):
            self.dropped += 1
            return
        newcomer = below.newcomer(piece.key, owner, piece.start)
        slot = self._room(depth)
        if slot < 0:
            self.dropped += 1
            return
        below.keep(newcomer, slot)
        self.spilled += 1
        self._moves.append(Move(source, Place(below.level, slot)))

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
        """Counts so far, and blocks found in each tier now: in the pool, those of all replicas."""
        kept = {f"{TIERS[tier.level]}_blocks": tier.blocks for tier in self.tiers}
        levels = (GPU, *(tier.level for tier in self.tiers))
        return {
            **{f"{TIERS[level]}_hit_tokens": self.hit_tokens[level] for level in levels},
            "computed_tokens": self.computed_tokens,
            "saved_blocks": self.saved,
            "loaded_blocks": self.loaded,
            "spilled_blocks": self.spilled,
            "dropped_blocks": self.dropped,
            "swapped_sequences": self.swapped,
            **kept,
        }
