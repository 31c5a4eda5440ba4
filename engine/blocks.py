"""Paged KV cache: reserve, share and release blocks, counted in pieces.

A *piece* is a run of blocks of one request that are referenced together. Blocks without content
worth keeping are a mere count; so a request costs the pieces it touches, however long it is.

Blocks are registered for others to hit when they are scheduled, in order, so what is registered
of a request at work is derived from its progress. Only where two requests compute the same content
at once (they are *contested*) each block is looked up as it is registered; a second copy of a block
then becomes a piece of its own. Hence:

- every block inside a piece but its first is the oldest registered copy of its content;
- copies of one content that begin a piece are chained in the index, oldest first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from engine.decoding import DecodeSet
from engine.eviction.protocol import CacheView, EvictionPolicy, Future
from engine.moment import Moment
from engine.prefix import NO_HIT, Hit, Piece, PrefixIndex
from engine.sequence import FINISHED, Sequence
from engine.tiers import Tiers

ALWAYS: Final = 1 << 60
"""`contested_until` of a sequence whose every block is looked up on registration."""


class BlockManager:
    """Which sequence holds how many blocks (or which, if named), and the prefix cache."""

    __slots__ = (
        "_begin",
        "_begun",
        "_by_piece",
        "_expired",
        "_hashless",
        "_hit",
        "_looked_up",
        "_names",
        "_reserved",
        "_strands",
        "_together",
        "block_tokens",
        "caching",
        "contested",
        "copies",
        "early",
        "evicted",
        "eviction",
        "free",
        "listener",
        "named",
        "prefix",
        "tiers",
        "usable",
    )

    def __init__(
        self,
        usable: int,
        block_tokens: int,
        decodes: DecodeSet,
        eviction: Callable[[CacheView], EvictionPolicy],
        *,
        moment: Moment | None = None,
        context_tokens: int = 0,
        future: Future | None = None,
        caching: bool = True,
        named: bool = False,
        lag: int = 0,
        reserved: int = 0,
        tiers: Tiers | None = None,
    ) -> None:
        """A pool of `usable` blocks.

        Args:
            usable: blocks of the pool, without vLLM's null block.
            block_tokens: tokens of KV a block holds.
            decodes: knows how far decoding sequences are.
            eviction: makes the policy that says which unreferenced piece goes first.
            moment: the time.
            context_tokens: see CacheView.
            future: see CacheView.
            caching: keep computed blocks for later requests with the same prefix.
            named: give each block a number (1..usable), for an executor.
            lag: tokens of a decoding sequence that are scheduled but not known (asynchronous: 1).
            reserved: blocks every sequence gets at once (contiguous allocation); 0: as it grows.
            tiers: where named blocks go that leave the pool; None: nowhere.
        """
        self.usable: int = usable
        self.block_tokens: int = block_tokens
        self.prefix: PrefixIndex = PrefixIndex(block_tokens, decodes, lag)
        view = CacheView(
            usable,
            block_tokens,
            prefix=self.prefix,
            moment=moment,
            context_tokens=context_tokens,
            future=future,
        )
        self.eviction: EvictionPolicy = eviction(view)
        self._begin: Any = getattr(self.eviction, "begin", None)
        self._by_piece: bool = getattr(self.eviction, "by_piece", False)
        self._expired: Any = getattr(self.eviction, "expired", None)
        self._strands: bool = not getattr(self.eviction, "leaf_first", False)
        """A piece may go before those that continue it, which then cannot be hit."""
        if self._strands:
            self.prefix.count_starts()
        self._hit: Any = getattr(self.eviction, "hit", None)
        self._together: Any = getattr(self.eviction, "together", None)
        self.caching: bool = caching
        self.named: bool = named
        self.tiers: Tiers | None = tiers
        self.free: int = usable
        """Blocks nobody references, cached or not."""
        self.evicted: int = 0
        """Cached blocks given up since the start."""
        self.copies: int = 0
        """Blocks registered so far whose content another block held already."""
        self.contested: int = 0
        """Running sequences whose registration is looked up block by block."""
        self.listener: Any = None
        """Told of content that comes and goes (see sim.routing.index); None: nobody is."""
        self.early: dict[Sequence, Sequence] = {}
        """Waiting sequences whose blocks are loaded already, each with the one that stands for it
        and holds them."""
        self._looked_up: Sequence | None = None
        """For whom was last seen what has expired, until it is admitted."""
        self._reserved: int = reserved
        self._begun: int = 0
        """Pieces begun since the start."""
        self._hashless: int = usable
        """Free blocks with no content: they are taken before any cached block."""
        self._names: list[int] = list(range(usable, 0, -1)) if named else []
        """Names of the hashless blocks; the last is taken next."""

    # ---- how much

    def blocks_for(self, tokens: int) -> int:
        """Blocks that a sequence with `tokens` computed tokens holds."""
        return self._reserved or -(-tokens // self.block_tokens)

    def growth(self, computed: int, tokens: int) -> int:
        """New blocks for the next `tokens` tokens after `computed` ones."""
        if self._reserved:
            return 0
        block_tokens = self.block_tokens
        return -(-(computed + tokens) // block_tokens) + (-computed // block_tokens)

    # ---- prefix lookup

    def match(self, seq: Sequence, known_tokens: int) -> Hit:
        """The longest cached prefix of `seq`; one of its `known_tokens` at least is left out."""
        if not self.caching or not (seq.shared_blocks or seq.kept):
            return NO_HIT
        if self._expired is not None and seq is not self._looked_up:
            # a head of the queue that waits for blocks is looked up at each step that is taken,
            # however many are taken at once: only the first time counts
            self._looked_up = seq
            self._give_up_expired()
        limit = (known_tokens - 1) // self.block_tokens
        hit = self.prefix.walk(seq, limit)
        if self.tiers is not None:
            hit.below = self.tiers.reach(seq, hit.blocks, limit, self.prefix)
        return hit

    def _give_up_expired(self) -> None:
        piece = self._expired()
        while piece is not None:
            blocks = piece.end - piece.start
            self.evicted += blocks
            if self.named:
                self._names.extend(piece.names)
                piece.names = []
            else:
                self._hashless += blocks
            self._shrink(piece, blocks)
            piece = self._expired()

    # ---- reserve

    def fits(self, hit: Hit, tokens: int, watermark: int) -> bool:
        """Whether there are blocks for `tokens` tokens beyond the hit, and `watermark` more."""
        more = max(self.blocks_for(tokens) - hit.blocks, 0)
        return more + hit.evictable + watermark <= self.free

    def admit(self, seq: Sequence, hit: Hit, tokens: int, whole: int, watermark: int) -> bool:
        """Give a waiting sequence its hit and blocks up to `tokens`, if `whole` tokens would fit.

        Blocks that lie in a tier below, or in which its own content was swapped out, are copied
        up. Returns False, and changes nothing, if they and `watermark` more are not free.
        """
        blocks = self.blocks_for(tokens)
        most = self.blocks_for(whole) if whole > tokens else blocks
        more = most - hit.blocks if most > hit.blocks else 0
        if more + hit.evictable + watermark > self.free:
            if self._strands and hit.evictable:
                hit.rival = seq  # the hit may lose more than is evicted: look again each step
            return False
        self._looked_up = None
        if self.named:
            seq.table = []
        if hit.pieces:
            self._reference(seq, hit)
        if self.tiers is not None:
            self.tiers.need(seq.table)
        piece = Piece(hit.blocks, hit.blocks, seq)
        if self._begin is not None and self.caching:
            piece.key = self.prefix.content(seq, hit.blocks)
            self._begin(piece)
        if blocks > hit.blocks:
            if self.tiers is None:
                self.take(seq, blocks - hit.blocks)
            else:
                self._take_filled(seq, hit, blocks, self.tiers)
        if self.caching:
            self._begun += 1
            piece.born = self._begun
            piece.is_open = True
            seq.open = piece
            if hit.blocks < seq.shared_blocks:
                self.prefix.insert(piece, self.prefix.key(seq, hit.blocks))
                if hit.rival is not None:
                    self._contest_all(piece)
            if self.named:
                seq.contested_until = ALWAYS
            elif hit.copied or hit.rival is not None or self._may_be_overtaken(seq, hit):
                seq.contested_until = max(seq.shared_blocks, hit.blocks + 1)
            elif self._strands and self.evicted:
                seq.contested_until = self._stranded_until(seq, hit)
            if seq.contested_until:
                self.contested += 1
            if self.listener is not None:
                self.listener.begun(seq, hit.blocks)
        return True

    def _take_filled(self, seq: Sequence, hit: Hit, blocks: int, tiers: Tiers) -> None:
        """Take the blocks past a hit and have those copied up that are there below."""
        tiers.count(seq, hit, self.block_tokens)
        tiers.pin(hit.below)
        self.take(seq, blocks - hit.blocks)
        loaded = hit.blocks + len(hit.below)
        tiers.load(hit.below, seq.table[hit.blocks : loaded])
        if seq.swapped:
            stored = -(-seq.swapped // self.block_tokens)
            tiers.swap_in(seq, loaded, seq.table[loaded:stored])
            seq.swapped = 0

    def _may_be_overtaken(self, seq: Sequence, hit: Hit) -> bool:
        """Whether a contested sequence may lag behind what `seq` hits, and yet get ahead of it."""
        return self.contested > 0 and 0 < hit.blocks < seq.shared_blocks

    def _stranded_until(self, seq: Sequence, hit: Hit) -> int:
        """Up to which block of `seq` content past the hit may be cached; 0 if none is."""
        end = 0
        for piece in seq.kept:
            if piece.start > hit.blocks and piece.end > end:
                end = piece.end
        shared = seq.shared_blocks
        if self.prefix.next_start(seq, hit.blocks + 1, shared) < shared:
            return max(end, shared)
        return end

    def take(self, seq: Sequence, blocks: int) -> None:
        """Give `seq` that many free blocks, content-free ones first; there are enough."""
        if not self.named:
            self.take_counted(blocks)
            return
        self.free -= blocks
        for _ in range(blocks):
            seq.table.append(self._names.pop() if self._names else self._evict_named())

    def take_counted(self, blocks: int) -> None:
        """Give running sequences that many free blocks in all, without names."""
        self.free -= blocks
        if blocks <= self._hashless:
            self._hashless -= blocks
        else:
            self._evict(blocks - self._hashless)
            self._hashless = 0

    def _evict(self, blocks: int) -> None:
        self.evicted += blocks
        while blocks:
            piece = self.eviction.victim()
            cut = piece.end - piece.start
            if cut > blocks:
                cut = blocks
            if self._together is not None:
                cut = min(cut, self._together(piece))
            if self._by_piece and piece.end - piece.start > cut and self.listener is None:
                piece.end -= cut
            else:
                self._shrink(piece, cut)
            blocks -= cut

    def _shrink(self, piece: Piece, blocks: int) -> None:
        """Forget the content of a piece's last blocks."""
        piece.end -= blocks
        if self.listener is not None:
            self.listener.evicted(piece, blocks)
        self.eviction.evicted(piece, blocks)
        if piece.end == piece.start and piece.indexed:
            self.prefix.drop(piece)

    def _evict_named(self) -> int:
        piece = self.eviction.victim()
        name = piece.names.pop()
        owner = piece.owner
        if self.tiers is not None and owner is not None and piece.end <= owner.shared_blocks:
            block = piece.end - 1
            self.tiers.evicted(self.prefix.key(owner, block), owner, block, name)
        self._evict(1)
        return name

    # ---- hold for who waits

    def fetch_early(self, seq: Sequence) -> None:
        """Have what lies below of a queued sequence's prompt copied up, and hold it with what it
        hits, as far as there is room; others can hit it too."""
        tiers = self.tiers
        if tiers is None or not self.named:
            return
        hit = self.match(seq, seq.prompt_tokens)
        held = hit.blocks
        for holder in self.early.values():
            held += holder.base
        most = min(int(tiers.prefetch_share * self.usable) - held, self.free - hit.evictable)
        keys = self._lying_below(seq, hit, most)
        if not keys:
            return
        holder = Sequence(seq.request, seq.number, seq.arrival)
        holder.status = FINISHED
        holder.hashes = seq.hashes
        holder.shared_blocks = seq.shared_blocks
        holder.base = end = hit.blocks + len(keys)
        self.early[seq] = holder
        if hit.pieces:
            self._reference(holder, hit)
        piece = Piece(hit.blocks, end, holder)
        piece.key = self.prefix.key(seq, hit.blocks)
        self._begun += 1
        piece.born = self._begun
        if self._begin is not None:
            self._begin(piece)
        tiers.pin(keys)
        self.take(holder, len(keys))
        piece.names = holder.table[hit.blocks :]
        tiers.load_early(seq, hit.blocks, keys, piece.names)
        self.prefix.insert(piece, piece.key)
        holder.held += (piece,)
        if self.listener is not None:
            self.listener.begun(holder, hit.blocks)
            self.listener.released(holder, end)

    def _lying_below(self, seq: Sequence, hit: Hit, most: int) -> tuple[int, ...]:
        """Keys of at most `most` blocks below the GPU, up to one that is on it too: the inside of
        a piece is the oldest copy of its content."""
        keys: list[int] = []
        for key in hit.below[: max(most, 0)]:
            copy = self.prefix.oldest(key)
            while copy is not None and self.prefix.end_of(copy) <= hit.blocks + len(keys):
                copy = copy.later
            if copy is not None:
                break
            keys.append(key)
        return tuple(keys)

    def let_go(self, seq: Sequence) -> None:
        """Hold nothing any more for a sequence that was admitted or left the queue."""
        holder = self.early.pop(seq, None)
        if holder is not None and self.tiers is not None:
            self.tiers.let_go(seq, holder.table)
            self._release_held(holder, holder.base)
            holder.table = []

    def let_another_go(self, seq: Sequence | None) -> bool:
        """Hold nothing any more for the last to come of those that wait, `seq` apart; returns
        whether there was one."""
        for other in reversed(self.early):
            if other is not seq:
                self.let_go(other)
                return True
        return False

    # ---- share

    def _reference(self, seq: Sequence, hit: Hit) -> None:
        for i, piece in enumerate(hit.pieces):
            stop = hit.pieces[i + 1].start if i + 1 < len(hit.pieces) else hit.blocks
            tail = self._split(piece, stop) if piece.is_open or stop < piece.end else None
            if piece.refs == 0:
                if tail is None:
                    self.eviction.remove(piece)
                else:
                    self.eviction.replace(piece, tail)
                self.free -= stop - piece.start
            piece.refs += 1
            piece.hits += 1
            if self._hit is not None:
                self._hit(piece, seq)
            seq.held += (piece,)
            if self.named:
                seq.table.extend(piece.names)

    def _split(self, piece: Piece, at: int) -> Piece:
        """Cut `piece` so that it ends at `at`; returns the rest, a piece of its own."""
        owner = piece.owner
        assert owner is not None
        end = self.prefix.end_of(piece)
        right = Piece(at, end, owner)
        right.refs = piece.refs
        right.right = piece.right
        right.born = piece.born
        right.hits = piece.hits
        right.rank = piece.rank
        right.segment = piece.segment
        right.place = piece.place
        piece.right = right
        piece.end = at
        if piece.is_open:
            piece.is_open = False
            right.is_open = True
            owner.open = right
            owner.held += (piece,)
            if self.named:
                piece.names = owner.table[piece.start : at]
        else:
            if self.named:
                right.names = piece.names[at - piece.start :]
                del piece.names[at - piece.start :]
        if at < owner.shared_blocks:
            self.prefix.insert(right, self.prefix.key(owner, at), oldest=end > at)
        elif not right.is_open and owner.status != FINISHED:
            owner.kept += (right,)
        return right

    # ---- register what may have copies

    def learn(self, seq: Sequence, block_hash: int) -> None:
        """The content of one more block of `seq` is known: others can hit it once it is full."""
        if not self.caching:
            return
        self.prefix.expect_hashes(self.block_tokens)
        at = seq.shared_blocks
        seq.hashes += (block_hash,)
        seq.shared_blocks = at + 1
        piece = seq.open
        if piece is not None and piece.start == at and not piece.indexed:
            self.prefix.insert(piece, self.prefix.key(seq, at))

    def _contest_all(self, piece: Piece) -> None:
        """Look at all that are about to compute the content that `piece` begins with."""
        other = self.prefix.oldest(piece.key)
        while other is not None:
            if other is not piece and other.is_open:
                assert other.owner is not None
                self._contest(other.owner)
            other = other.later

    def _contest(self, seq: Sequence) -> None:
        """Look at each block of a running sequence from now on, as far as others may have it."""
        if seq.contested_until == 0:
            piece = seq.open
            assert piece is not None
            piece.end = self.prefix.end_of(piece)
            seq.contested_until = seq.shared_blocks
            self.contested += 1

    def register(self, seq: Sequence, tokens: int, leaving: bool = False) -> None:
        """Register the blocks of a contested sequence up to `tokens`, one by one.

        Once all that others may have is registered, it is contested no more: from the next step
        on, when its progress tells what is registered of it. `leaving`: it is about to release
        its blocks.
        """
        piece = seq.open
        assert piece is not None
        if piece.end >= seq.contested_until:
            self._settle(seq)
            return
        stop = tokens // self.block_tokens
        known = self.prefix.walk(seq, stop).blocks if piece.end < stop else 0
        block = piece.end
        while block < stop:
            if block < known:
                piece = self._register_copy(seq, piece, block)
                block += 1
                continue
            if block == piece.start and piece.indexed:
                self.prefix.drop(piece)
                self.prefix.insert(piece, piece.key, oldest=True)
            piece.end = min(self.prefix.next_start(seq, block + 1, stop), stop)
            if self.tiers is not None:
                for fresh in range(block, min(piece.end, seq.shared_blocks)):
                    key, name = self.prefix.key(seq, fresh), seq.table[fresh]
                    self.tiers.computed(key, seq, fresh, name, leaving=leaving)
            block = piece.end
            known = self.prefix.reach(seq, block, stop)

    def _settle(self, seq: Sequence) -> None:
        seq.contested_until = 0
        self.contested -= 1

    def _register_copy(self, seq: Sequence, piece: Piece, block: int) -> Piece:
        """Make `block` a piece of its own; returns the new open piece after it."""
        self.copies += 1
        copy = piece
        if piece.end > piece.start:
            piece.is_open = False
            seq.held += (piece,)
            if self.named:
                piece.names = seq.table[piece.start : block]
            if piece.start >= seq.shared_blocks:
                seq.kept += (piece,)
            copy = Piece(block, block + 1, seq)
            copy.born = piece.born
        self.prefix.drop(copy)
        copy.end = block + 1
        copy.is_open = False
        seq.held += (copy,)
        if self.named:
            copy.names = [seq.table[block]]
        if block < seq.shared_blocks:
            self.prefix.insert(copy, self.prefix.key(seq, block))
        else:
            seq.kept += (copy,)
        rest = Piece(block + 1, block + 1, seq)
        rest.born = piece.born
        rest.is_open = True
        seq.open = rest
        if block + 1 < seq.shared_blocks:
            self.prefix.insert(rest, self.prefix.key(seq, block + 1))
        return rest

    # ---- release

    def release(self, seq: Sequence, computed: int, registered: int) -> None:
        """Take back all blocks of `seq`.

        Args:
            seq: a running sequence that finished or is preempted.
            computed: tokens it has blocks for.
            registered: tokens whose blocks are cached; the others' content is lost.
        """
        blocks = self.blocks_for(computed)
        piece = seq.open
        if piece is None:
            self._free_hashless(seq, blocks, 0)
            seq.table = []
            return
        end = max(piece.start, registered // self.block_tokens)
        if seq.contested_until:
            self.register(seq, registered, leaving=True)
            if seq.contested_until:
                piece = seq.open
                assert piece is not None
                end = piece.end
                self._settle(seq)
        self._free_hashless(seq, blocks, end)
        if self.listener is not None:
            self.listener.released(seq, end)
        seq.open = None
        if end > piece.start:
            piece.end = end
            piece.is_open = False
            piece.refs = 0
            if self.named:
                piece.names = seq.table[piece.start : end]
            if not piece.indexed:
                if seq.status != FINISHED:
                    seq.kept += (piece,)
                elif not self.named:
                    piece.lost = True
            self._queue(piece)
        else:
            self.prefix.drop(piece)
        if seq.held:
            self._release_held(seq, piece.start)
        if seq.kept and seq.status == FINISHED:
            seq.kept = ()  # nobody will look, and sequence and pieces would keep each other alive
        if self.named:
            seq.table = []

    def _release_held(self, seq: Sequence, end: int) -> None:
        pieces: list[Piece] = []
        held = seq.held
        for i, first in enumerate(held):
            bound = held[i + 1].start if i + 1 < len(held) else end
            piece = first
            pieces.append(piece)
            while piece.end < bound:
                right = piece.right
                assert right is not None
                piece = right
                pieces.append(piece)
        seq.held = ()
        for piece in reversed(pieces):
            piece.refs -= 1
            if piece.refs == 0:
                self._queue(piece)

    def _queue(self, piece: Piece) -> None:
        self.eviction.push(piece)
        self.free += piece.end - piece.start

    def _free_hashless(self, seq: Sequence, blocks: int, kept: int) -> None:
        """Free what lies past the first `kept` blocks of a sequence that holds `blocks`."""
        count = blocks - kept
        self.free += count
        if self.named:
            self._names.extend(seq.table[kept:])
        else:
            self._hashless += count
