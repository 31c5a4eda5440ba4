"""KV tiers below the GPU on the simulated clock: the engine's own decisions, and what copies cost.

Copies begin when the scheduler asks for them, beside the step that runs then, and take their time
on the links (see sim.links). A step waits for those that bring what it reads and save what it
overwrites. Copies of what it has computed (write-through) begin when it ends; the step that waits
for them is the next, or with asynchronous scheduling the one after that, as in the engine. Where
the device makes its copies itself, all of them come between steps.
"""

from __future__ import annotations

from collections import deque
from functools import cache

from calibration.copies import CopySettings
from calibration.costs import CostModel
from calibration.profiles import Profile
from engine.batch import Batch
from engine.config import CacheSettings, OffloadSettings
from engine.moment import Moment
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from engine.tiers import Tier, Tiers, room_below
from engine.work import CPU, DISK, GPU, REMOTE, Move, Place
from sim.links import Link, Links, link_to
from traces.errors import ConfigError
from traces.request import Request


def memory_below(
    offload: OffloadSettings, cache: CacheSettings, profile: Profile
) -> MemoryBelow | None:
    """What lies below the GPUs of a cluster at rest; None without room there.

    Raises:
        ConfigError: blocks would be larger below than on the GPU, or there is no such policy.
    """
    return MemoryBelow(offload, cache, profile) if offload.has_room else None


class MemoryBelow:
    """The tiers of each replica of a cluster, and the pool that all of them share."""

    def __init__(self, offload: OffloadSettings, cache: CacheSettings, profile: Profile) -> None:
        """Nothing is stored yet; raises as `memory_below`."""
        self._offload = offload
        self._block_tokens = cache.block_tokens
        self._copies: CopySettings = profile.copies.stated_by(offload)
        self._tp = profile.tp
        self._whole_blocks = profile.kv_dtype == "int4_channel"
        self._block_bytes = block_bytes_below(offload, cache, profile)
        self._moment = Moment()
        self.pool: Tier | None = room_below(
            REMOTE,
            offload.remote_bytes,
            self._block_bytes * self._tp,
            offload.eviction,
            self._moment,
        )
        """What every replica finds; None: there is none."""
        self._pool_link: Link = link_to(REMOTE, self._copies, self._block_bytes, self._tp)

    def tiers(self) -> Tiers:
        """The tiers of one more replica."""
        return Tiers(
            self._offload,
            self._block_bytes * self._tp,
            whole_blocks=self._whole_blocks,
            remote=self.pool,
            moment=self._moment,
        )

    def cost(self, scheduler: Scheduler, cost: CostModel, foreseen: CostModel) -> CopyingCost:
        """The cost model of a replica, copies included.

        Args:
            scheduler: the replica's, with tiers.
            cost: of its steps alone.
            foreseen: the same without noise: what `reload: cheaper` goes by.
        """
        tiers = scheduler.tiers
        assert tiers is not None
        own = {lv: link_to(lv, self._copies, self._block_bytes, self._tp) for lv in (CPU, DISK)}
        links = Links({**own, REMOTE: self._pool_link})
        if self._offload.reload == "cheaper":
            chunk_tokens = scheduler.settings.max_num_batched_tokens
            assert chunk_tokens is not None
            tiers.worth = Cheaper(
                foreseen, links, scheduler.moment, self._block_tokens, chunk_tokens
            )
        return CopyingCost(
            cost,
            tiers,
            links,
            asynchronous=scheduler.settings.async_scheduling,
            beside_steps=self._copies.beside_steps,
        )

    def summary(self, replicas: list[Tiers]) -> dict[str, int]:
        """Counts of all replicas together; what the pool holds counts once."""
        each = [tiers.summary() for tiers in replicas]
        total = {name: sum(one[name] for one in each) for name in each[0]}
        if self.pool is not None:
            total["remote_blocks"] = self.pool.blocks
        return total


def block_bytes_below(offload: OffloadSettings, cache: CacheSettings, profile: Profile) -> int:
    """Bytes of a block as it lies below, of each of a replica's GPUs.

    Raises:
        ConfigError: they would be no fewer than on the GPU, although another dtype is asked for.
    """
    shape, tokens, tp = profile.shape, cache.block_tokens, profile.tp
    on_gpu = shape.kv_block_bytes(profile.kv_dtype, tokens, tp)
    if offload.dtype == "same":
        return on_gpu
    below = shape.kv_block_bytes(offload.dtype, tokens, tp)
    if below >= on_gpu:
        raise ConfigError(
            f"offload.dtype: {offload.dtype} blocks of {below:,} bytes are no smaller than those on"
            f" the GPU ({profile.kv_dtype}, {on_gpu:,} bytes); expected same, or a smaller one"
        )
    return below


class CopyingCost:
    """A cost model whose steps include waiting for the copies that the scheduler asked for.

    Ask it once for each step that is scheduled, after `at`: the copies begin then.
    """

    def __init__(
        self,
        cost: CostModel,
        tiers: Tiers,
        links: Links,
        *,
        asynchronous: bool = False,
        beside_steps: bool = True,
    ) -> None:
        """The cost of a replica's steps.

        Args:
            cost: that of the steps alone.
            tiers: the scheduler's own.
            links: that its copies take.
            asynchronous: a step is scheduled before the output of the one before is taken.
            beside_steps: copies and steps do not hold each other up.
        """
        self._cost = cost
        self._tiers = tiers
        self._links = links
        self._steps_until_free = 2 if asynchronous else 1
        self._beside_steps = beside_steps
        self._saves: deque[tuple[int, int]] = deque()
        """Copies of what steps computed: the first step that waits for them, and their end."""
        self._loading: dict[int, int] = {}
        """Blocks of the GPU that are loaded for sequences which wait: when they are there."""
        self._step = 0
        self._called_ps = 0
        self._start_ps = 0

    def at(self, called_ps: int, start_ps: int) -> None:
        """The step to come was scheduled at `called_ps`; the device is free at `start_ps`."""
        self._called_ps = called_ps
        self._start_ps = start_ps

    def queued(self, now_ps: int) -> None:
        """A sequence was queued: copies that this asked for begin, beside whatever runs."""
        if not self._beside_steps:
            return  # the device is to make them before its next step
        for move in self._tiers.take_early():
            end_ps = self._links.carry_one(move, now_ps, now_ps)
            if move.target.level == GPU:
                self._loading[move.target.slot] = end_ps

    def progression(self, batch: Batch) -> tuple[int, int, int]:
        """See CostModel.progression; each step is a progression of its own."""
        step_ps, _, _ = self._cost.progression(batch)
        loaded = max((self._loading.pop(name, 0) for name in self._tiers.take_due()), default=0)
        before, after = self._tiers.take_moves()
        self._step += 1
        end_ps = self._beside(batch, before, after, loaded, step_ps)
        return end_ps - self._start_ps, 0, 1

    def _beside(
        self,
        batch: Batch,
        before: tuple[Move, ...],
        after: tuple[Move, ...],
        loaded_ps: int,
        step_ps: int,
    ) -> int:
        """When the step ends; what was asked for earlier and it needs is there at `loaded_ps`."""
        start, now = self._start_ps, self._called_ps
        carry = self._links.carry
        if not self._beside_steps:
            end = carry(before, start, now) + step_ps
            return carry(after, end, now)
        # blocks of a preempted sequence are being written until the step that runs is done
        begin = start if batch.preempted else now
        ready = max(start, loaded_ps, carry(before, begin, now))
        while self._saves and self._saves[0][0] <= self._step:
            ready = max(ready, self._saves.popleft()[1])
        end = ready + step_ps
        if after:
            self._saves.append((self._step + self._steps_until_free, carry(after, end, now)))
        return end


class Cheaper:
    """Loads what is there sooner than it is computed, and keeps what is worth that (Worth).

    Of blocks on one tier it loads all or none: loading takes the same for each, while computing
    takes longer for those further on, so the best number is at either end of their run.
    """

    def __init__(
        self, cost: CostModel, links: Links, moment: Moment, block_tokens: int, chunk_tokens: int
    ) -> None:
        """Judge by `cost`, by what the links are busy with at that moment, and by steps of at most
        `chunk_tokens` of a prompt."""
        self._cost = cost
        self._links = links
        self._moment = moment
        self._block_tokens = block_tokens
        self._chunk_tokens = chunk_tokens
        self._anybody = Sequence(Request(0, 0.0, 1, 1), 0, 0)
        self._block_ps = cache(self._computing_a_block_ps)

    def blocks_to_load(self, seq: Sequence, start: int, places: list[Place]) -> int:
        """As many as make loading and then computing the rest take least; of equals the most."""
        now = self._moment.now
        known = seq.prompt_tokens + seq.generated
        loaded = self._links.foreseen(places, now)
        best, least = 0, self._computing_ps(start * self._block_tokens, known)
        for count in range(1, len(places) + 1):
            if count < len(places) and places[count].level == places[count - 1].level:
                continue
            rest = self._computing_ps((start + count) * self._block_tokens, known)
            total = loaded[count - 1] - now + rest
            if total <= least:
                best, least = count, total
        return best

    def is_worth_keeping(self, block: int, level: int) -> bool:
        """Whether an idle link carries it in no more time than computing it takes."""
        return self._links.links[level].block_ps <= self._block_ps(block)

    def _computing_a_block_ps(self, block: int) -> int:
        """Its share of a whole step of prompt that begins with it."""
        begin = block * self._block_tokens
        step = self._computing_ps(begin, begin + self._chunk_tokens)
        return step * self._block_tokens // self._chunk_tokens

    def _computing_ps(self, begin: int, end: int) -> int:
        """Time to compute a prompt's tokens from `begin` to `end`, in steps of their own."""
        total = 0
        while begin < end:
            tokens = min(self._chunk_tokens, end - begin)
            batch = Batch()
            batch.prefills = ((self._anybody, tokens),)
            batch.prefill_tokens = tokens
            batch.prefill_context_tokens = begin + tokens
            batch.prefill_pairs = tokens * begin + tokens * (tokens + 1) // 2
            batch.prefill_pairs_growth = tokens * tokens
            total += self._cost.progression(batch)[0]
            begin += tokens
        return total
