"""Continuous batching as vLLM's V1 scheduler does it, several equal steps at a time.

`schedule` decides one step and for how many steps (`Batch.horizon`) it would decide the same
again if nothing arrived. The engine takes one step, the simulator takes the horizon. Tokens and
blocks are granted in running order: decodes and unfinished prompts first, then waiting requests.

Most steps grant everyone what they ask for; then only sums matter and no sequence is looked at.
Where they do not (a full pool, a short budget, contested content, named blocks), `_walk` grants
sequence by sequence, and the horizon is 1.
"""

from typing import Any

from engine.batch import Batch
from engine.blocks import BlockManager
from engine.config import CacheSettings, SchedulerSettings
from engine.decoding import DecodeSet
from engine.demand import blocks_due, most_blocks_due, steps_that_fit
from engine.eviction import EVICTION
from engine.eviction.protocol import Future
from engine.moment import Moment
from engine.named import chosen
from engine.order.chunks import StepTime
from engine.order.discipline import QueueView
from engine.order.victims import last_in
from engine.policies import CHUNKING, ORDER, VICTIM
from engine.prefix import NO_HIT
from engine.sequence import FINISHED, RUNNING, WAITING, Sequence
from engine.tiers import Tiers
from engine.waiting import WaitingQueue
from traces.errors import ConfigError
from traces.request import Request

UNLIMITED = 1 << 60


class Scheduler:
    """Decides what each step runs; pure: no clock, no randomness, no I/O.

    The life of a sequence: `add`, then steps of `schedule`, `advance` and `output`, until `output`
    returns it. With synchronous scheduling `output` follows its `advance` at once; with
    asynchronous scheduling the next `schedule` comes in between.
    """

    __slots__ = (
        "_admissions",
        "_ahead",
        "_announces",
        "_asynchronous",
        "_budget",
        "_chunked",
        "_chunking",
        "_chunks_vary",
        "_executed",
        "_exhausted",
        "_last_joined",
        "_max_len",
        "_max_running",
        "_named",
        "_news",
        "_numbers",
        "_on_admitted",
        "_on_ended",
        "_on_queued",
        "_on_served",
        "_on_unqueued",
        "_outranked",
        "_prefetches",
        "_prefill_first",
        "_prefills",
        "_reserve_full",
        "_static",
        "_steady_steps",
        "_steps",
        "_swap",
        "_threshold",
        "_victim",
        "_victim_is_last",
        "_watermark",
        "blocks",
        "decodes",
        "moment",
        "queue",
        "running",
        "settings",
        "tiers",
    )

    def __init__(
        self,
        settings: SchedulerSettings,
        cache: CacheSettings,
        num_blocks: int,
        *,
        named: bool = False,
        executed: bool = False,
        tiers: Tiers | None = None,
        step_time: StepTime | None = None,
        context_tokens: int = 0,
        future: Future | None = None,
    ) -> None:
        """A scheduler over a pool of `num_blocks` blocks, one of which is vLLM's null block.

        Args:
            settings: how batches are formed; a limit that is None is none.
            cache: how blocks are laid out and kept.
            num_blocks: blocks of the pool; all but one are usable.
            named: number the blocks for an executor (`Sequence.table`); then `horizon` is 1.
            executed: count as cached only what is computed. By vLLM's rules a block is cached when
                it is scheduled, and stays so if its sequence is then preempted in that very step
                (under priority order): a hit would read what was never written.
            tiers: where named blocks go that leave the pool, and preempted sequences' with
                `preemption: swap`.
            step_time: what a step takes, for chunking that looks at it.
            context_tokens: see CacheView.
            future: of the requests to come, for an eviction policy that has to know it.

        Raises:
            ConfigError: a policy that cannot work with these settings.
        """
        self.settings = settings
        self._asynchronous: bool = settings.async_scheduling
        self._static: bool = settings.batching == "static"
        self._prefill_first: bool = settings.prefill_first
        self._chunked: bool = settings.chunked_prefill and not self._static
        self._threshold: int = settings.long_prefill_token_threshold
        self._reserve_full: bool = settings.reserve_full_sequence
        self._max_running: int = settings.max_num_seqs or UNLIMITED
        self._max_len: int = settings.max_model_len or UNLIMITED
        self._budget: int = settings.max_num_batched_tokens or UNLIMITED
        if self._static:
            self._budget = UNLIMITED
        self._watermark: int = int(settings.watermark * num_blocks)
        self._victim: Any = chosen("victim", settings.victim_or_default, VICTIM)
        self._chunking: Any = None
        if settings.chunking is not None:
            self._chunking = chosen("chunking", settings.chunking, CHUNKING)(step_time)
        self._chunks_vary: bool = self._chunking is not None and self._chunking.varies
        self._named: bool = named
        self._executed: bool = executed
        self.tiers: Tiers | None = tiers
        self._prefetches: bool = tiers is not None and tiers.prefetch_share > 0
        self._swap: bool = settings.preemption == "swap"
        self.moment: Moment = Moment() if tiers is None else tiers.moment
        """The time; set before `add` and `schedule` by whoever calls them."""
        contiguous = cache.allocation == "contiguous"
        self.decodes: DecodeSet = DecodeSet(cache.block_tokens, paged=not contiguous)
        self.blocks: BlockManager = BlockManager(
            num_blocks - 1,
            cache.block_tokens,
            self.decodes,
            chosen("eviction policy", cache.eviction, EVICTION),
            moment=self.moment,
            context_tokens=context_tokens,
            future=future,
            caching=cache.prefix_caching,
            named=named,
            lag=1 if settings.async_scheduling else 0,
            reserved=-(-self._max_len // cache.block_tokens) if contiguous else 0,
            tiers=tiers,
        )
        self.running: dict[Sequence, None] = {}
        """In admission order."""
        view = QueueView(self.blocks, self.decodes, self.running, self.moment)
        order = chosen("order", settings.order, ORDER, passed_over=settings.starvation_limit)
        self.queue: WaitingQueue = WaitingQueue(order, view)
        self._victim_is_last: bool = self.queue.in_arrival_order and self._victim is last_in
        self._on_queued: Any = getattr(self.blocks.eviction, "queued", None)
        self._on_unqueued: Any = getattr(self.blocks.eviction, "unqueued", None)
        self._on_admitted: Any = self.queue.admitted
        self._on_served: Any = self.queue.served
        self._on_ended: Any = self.queue.ended
        self._outranked: Any = self.queue.outranked
        self._steady_steps: Any = self.queue.steady_steps
        self._announces: bool = self.queue.remembers or self._on_queued is not None
        """Arrivals count from the next call on: what was served until then may matter."""
        self._news: bool = False
        self._prefills: list[Sequence] = []
        """Running sequences whose known tokens are not all computed, in running order."""
        self._exhausted: int = 0
        """Running sequences whose last token is scheduled."""
        self._ahead: int = 0
        """Running sequences with `ahead` set."""
        self._last_joined: int = 0
        """No decoding sequence was admitted later."""
        self._admissions: int = 0
        self._numbers: int = 0
        self._steps: int = 0

    # ---- coming and going

    def sequence(self, request: Request, arrival: int) -> Sequence:
        """A sequence for `request`, not yet queued.

        Raises:
            ConfigError: its hashes stand for another number of tokens than those before.
        """
        self._numbers += 1
        seq = Sequence(request, self._numbers, arrival)
        room = self._max_len - request.prompt_tokens
        if seq.output_limit > room:
            seq.output_limit = room
        if request.hashed_tokens and self.blocks.caching:
            self.blocks.prefix.expect_hashes(request.hash_tokens)
            seq.shared_blocks = request.hashed_tokens // self.blocks.block_tokens
        return seq

    def refusal(self, request: Request) -> str:
        """Why `request` can never be served, or an empty string."""
        tokens = request.prompt_tokens
        if tokens >= self._max_len:
            return f"the prompt leaves no room below max_model_len = {self._max_len}"
        if self.blocks.blocks_for(tokens) > self.blocks.usable:
            return f"the prompt is larger than the pool of {self.blocks.usable} blocks"
        if not self._chunked and tokens > self._budget:
            return f"the prompt is larger than max_num_batched_tokens = {self._budget}"
        return ""

    def add(self, seq: Sequence) -> bool:
        """Queue a sequence; returns whether the next step may now be another than foreseen."""
        if self._prefetches and seq.shared_blocks:
            self.blocks.fetch_early(seq)
        if not self._announces:
            return self.queue.push(seq)
        self.queue.announce(seq)
        self._news = True
        return True

    def abort(self, seq: Sequence) -> None:
        """Drop a queued or running sequence and free its blocks; between two steps only."""
        if seq.status == WAITING:
            self._leave_queue(seq)
            self._forget_swapped(seq)
        elif seq.status == RUNNING:
            del self.running[seq]
            registered = self.blocks.prefix.registered_tokens(seq)
            self._stop_computing(seq)
            seq.status = FINISHED
            self.blocks.release(seq, seq.base, registered)
        seq.status = FINISHED
        if self._on_ended is not None:
            self._on_ended(seq)

    def _take_in(self) -> None:
        self._news = False
        for seq in self.queue.take_in():
            if self._on_queued is not None:
                self._on_queued(seq)

    def _leave_queue(self, seq: Sequence) -> None:
        if self._prefetches:
            self.blocks.let_go(seq)
        if self.queue.remove(seq) and self._on_unqueued is not None:
            self._on_unqueued(seq)

    def learn(self, seq: Sequence, block_hash: int) -> None:
        """The content of another block of `seq` is known now: called block by block, in order, as
        soon as its last token is out; others can hit it from then on."""
        self.blocks.learn(seq, block_hash)

    @property
    def waiting(self) -> int:
        """Sequences queued."""
        return self.queue.size

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self.running and not self.queue.size

    # ---- the step

    def schedule(self) -> Batch | None:
        """Decide the next step and grant it its tokens and blocks; None if there is no work.

        Raises:
            ConfigError: nothing runs, and the first that waits can never be admitted: it was
                preempted, and has become too long to be computed anew.
        """
        self._steps += 1
        if self._news:
            self._take_in()
        if not (self.queue.size or self._prefills or self._ahead or self._named):
            steady = self._schedule_decodes()
            if steady is not None:
                return steady
        batch = Batch()
        rival = False
        gave_way = 0
        if self._outranked is not None and self.queue.size:
            gave_way = self._make_way(batch)
        budget = self._budget if self._chunking is None else self._step_budget()
        if self._prefill_first:
            rival = self._admit(batch, budget, self._threshold)
            if not batch.admitted:
                self._grant_running(batch, budget, self._threshold)
        else:
            waiting = self.queue.size
            threshold = self._threshold if len(self.running) + waiting > 1 else 0
            budget = self._grant_running(batch, budget, threshold)
            if waiting and budget > 0 and len(batch.preempted) == gave_way:
                rival = self._admit(batch, budget, threshold)
        if batch.left_out:
            self._left_behind(batch)
        count = batch.decoding
        if batch.prefills:
            self._classify(batch)
        elif count:
            batch.decodes = count
            decodes = self.decodes
            context = decodes.base_sum + decodes.size * decodes.epoch
            for seq in batch.left_out:
                context -= decodes.computed(seq)
            batch.decode_context_tokens = context
        elif not batch.preempted:
            if self.queue.size and not self.running:
                raise ConfigError(self._stuck(self.queue.first()))
            return None
        batch.members = self.decodes
        if not rival:
            batch.horizon = self._horizon(batch)
        return batch

    def _stuck(self, seq: Sequence) -> str:
        """Why a sequence that has the whole pool to itself is not admitted."""
        known = seq.prompt_tokens + seq.generated
        begin = f"request {seq.request.request_id}: {known:,} tokens to compute after a preemption"
        needed = self.blocks.blocks_for(known)
        if needed > self.blocks.usable:
            return (
                f"{begin} need {needed:,} KV blocks of {self.blocks.usable:,}; expected more"
                " blocks, or a smaller scheduler.max_model_len"
            )
        return (
            f"{begin} exceed scheduler.max_num_batched_tokens = {self._budget:,}; expected at"
            " least as many as scheduler.max_model_len, or chunked_prefill: true"
        )

    def _schedule_decodes(self) -> Batch | None:
        """The most frequent case, without detours: nothing to do but to decode, and room for it.

        Returns None, and changes nothing, if it is another case after all.
        """
        decodes, blocks = self.decodes, self.blocks
        count = decodes.size
        if count == 0 or count > self._budget or blocks.contested:
            return None
        if self._exhausted and self._threshold:
            return None
        steps = decodes.steps_to_finish()
        most = count * ((steps - 1) // blocks.block_tokens + 2)
        if most > blocks.free:
            return None
        due = decodes.blocks_due(1)
        if due:
            blocks.take_counted(due)
        decodes.epoch += 1
        batch = Batch()
        batch.decoding = batch.decodes = count
        batch.decode_context_tokens = decodes.base_sum + count * decodes.epoch
        batch.members = decodes
        batch.horizon = steps
        return batch

    def _make_way(self, batch: Batch) -> int:
        """Preempt who ranks below the first that waits, until that has a place; returns how many
        that were."""
        while True:
            lower = self._outranked(self.running)
            if lower is None or self._has_place(self.queue.first()):
                return len(batch.preempted)
            self._preempt(lower, batch, 0)

    def _has_place(self, seq: Sequence) -> bool:
        if len(self.running) >= self._max_running:
            return False
        known = seq.prompt_tokens + seq.generated
        while True:
            hit = self.blocks.match(seq, known)
            if self.blocks.fits(hit, known, self._watermark if self.running else 0):
                return True
            if not self.blocks.let_another_go(seq):
                return False

    def _step_budget(self) -> int:
        decodes = self.decodes
        context = decodes.context_tokens + decodes.size
        prefix = self._prefills[0].base if self._prefills else 0
        budget: int = self._chunking.budget(decodes.size, context, prefix)
        return min(budget, self._budget)

    def _grant_running(self, batch: Batch, budget: int, threshold: int) -> int:
        """Give running sequences their tokens; returns the budget left."""
        if self._named or self.blocks.contested or self._ahead:
            return self._walk(batch, budget, threshold)
        decodes = self.decodes
        count = decodes.size
        if not self._prefills:
            if count == 0:
                return budget
            due = decodes.blocks_due(1)
            if count > budget or due > self.blocks.free:
                return self._walk(batch, budget, threshold)
            if due:
                self.blocks.take_counted(due)
            decodes.epoch += 1
            batch.decoding = count
            return budget - count
        left = budget - count
        due = decodes.blocks_due(1) if count else 0
        chunks: list[int] = []
        short = left < 0
        for seq in self._prefills:
            chunk = seq.prefill_end - seq.base
            if 0 < threshold < chunk:
                chunk = threshold
            if chunk > left:
                short = True
                chunk = left if left > 0 else 0
            chunks.append(chunk)
            left -= chunk
            due += self.blocks.growth(seq.base, chunk)
        if due > self.blocks.free or count > budget:
            return self._walk(batch, budget, threshold)
        if short and count and self._last_joined > self._prefills[0].admission:
            return self._walk(batch, budget, threshold)
        if due:
            self.blocks.take_counted(due)
        for seq, chunk in zip(self._prefills, chunks, strict=True):
            if chunk:
                seq.base += chunk
                batch.prefills += ((seq, chunk),)
        if count:
            decodes.epoch += 1
            batch.decoding = count
        return left

    def _walk(self, batch: Batch, budget: int, threshold: int) -> int:
        """Grant in running order, one by one, preempting where blocks run out."""
        decodes, blocks, step = self.decodes, self.blocks, self._steps
        granted: dict[Sequence, int] = {}
        registrable: list[tuple[Sequence, int]] = []
        for seq in list(self.running):
            if budget <= 0:
                break
            if seq.status != RUNNING:
                continue
            if seq.decoding:
                tokens = 1
            else:
                tokens = seq.prefill_end - seq.base
                if tokens <= 0:  # its last token is in flight
                    continue
                if 0 < threshold < tokens:
                    tokens = threshold
                if tokens > budget:
                    tokens = budget
            computed = decodes.computed(seq)
            need = blocks.growth(computed, tokens)
            while need > blocks.free:
                if blocks.let_another_go(None):
                    continue
                victim = self._victim(self.running, decodes)
                undone = granted.pop(victim, 0)
                budget += undone
                self._preempt(victim, batch, undone)
                if victim is seq:
                    break
            if seq.status != RUNNING:
                if self._victim_is_last:
                    break
                continue
            blocks.take(seq, need)
            granted[seq] = tokens
            budget -= tokens
            seq.stamp = step
            if not seq.decoding:
                seq.base += tokens
            elif seq.ahead:
                self._catch_up(seq)
            if seq.contested_until:
                computed += tokens
                known = computed
                if self._asynchronous and not seq.ahead:
                    known = max(min(computed, seq.prefill_end), computed - 1)
                if self._executed:
                    registrable.append((seq, known))
                else:
                    blocks.register(seq, known)
        for seq, known in registrable:
            if seq in granted:
                blocks.register(seq, known)
        for seq in self.running:
            if seq in granted:
                if seq.decoding:
                    batch.decoding += 1
                else:
                    batch.prefills += ((seq, granted[seq]),)
            elif seq.decoding:
                batch.left_out += (seq,)
        if batch.decoding:
            decodes.epoch += 1
            for seq in batch.left_out:
                decodes.hold_back(seq)
        return budget

    def _admit(self, batch: Batch, budget: int, threshold: int) -> bool:
        """Admit from the head of the queue while it fits.

        Returns whether the head stays because of blocks and a running sequence may yet compute
        what it could hit.
        """
        if self._static and self.running:
            return False
        running, blocks, queue = self.running, self.blocks, self.queue
        while budget > 0 and len(running) < self._max_running:
            if not queue.size:
                return False
            seq = queue.first()
            known = seq.prompt_tokens + seq.generated
            hit = NO_HIT
            if seq.shared_blocks or seq.kept:
                hit = blocks.match(seq, known)
            cached = hit.blocks
            if hit.below:
                cached += len(hit.below)
            cached *= blocks.block_tokens
            if seq.swapped > cached:
                cached = seq.swapped
            chunk = known - cached
            if 0 < threshold < chunk:
                chunk = threshold
            if chunk > budget:
                if not self._chunked:
                    return hit.rival is not None
                chunk = budget
            tokens = cached + chunk
            whole = known if self._reserve_full else tokens
            if not blocks.admit(seq, hit, tokens, whole, self._watermark if running else 0):
                if blocks.early and blocks.let_another_go(seq):
                    continue
                return hit.rival is not None
            queue.pop(seq)
            if self._prefetches:
                blocks.let_go(seq)
            if self._on_unqueued is not None:
                self._on_unqueued(seq)
            seq.prefill_end = known
            seq.base = tokens
            self._admissions += 1
            seq.admission = self._admissions
            seq.status = RUNNING
            seq.ahead = 0
            running[seq] = None
            self._prefills.append(seq)
            if seq.contested_until:
                blocks.register(seq, tokens)
            if seq.preemptions:
                seq.resumed_cached += (cached,)
            else:
                seq.cached_tokens = cached
            if self._on_admitted is not None:
                self._on_admitted(seq)
            batch.admitted += (seq,)
            batch.prefills += ((seq, chunk),)
            budget -= chunk
        return False

    def _classify(self, batch: Batch) -> None:
        """Fill in the sums that a step's cost depends on."""
        tokens = context = pairs = growth = 0
        count = batch.decoding
        decode_context = self.decodes.context_tokens if count else 0
        for seq in batch.left_out:
            decode_context -= self.decodes.computed(seq)
        for seq, chunk in batch.prefills:
            base = seq.base
            if chunk == 1 and base > seq.prompt_tokens:
                # the recomputation of an output token is a decode like any other
                count += 1
                decode_context += base
                continue
            tokens += chunk
            context += base
            pairs += chunk * (base - chunk) + chunk * (chunk + 1) // 2
            growth += chunk * chunk
        batch.decodes = count
        batch.decode_context_tokens = decode_context
        batch.prefill_tokens = tokens
        batch.prefill_context_tokens = context
        batch.prefill_pairs = pairs
        batch.prefill_pairs_growth = growth

    def _horizon(self, batch: Batch) -> int:
        """For how many steps, this one included, nothing but the context lengths changes."""
        if batch.preempted or batch.left_out or self._named or self._ahead:
            return 1
        blocks, decodes = self.blocks, self.decodes
        if blocks.contested or (self._prefill_first and batch.prefills):
            return 1
        if self._exhausted and (self.queue.size or self._threshold):
            return 1  # it is about to leave its blocks, its place, or another request alone
        if self._chunks_vary and (batch.prefills or self.queue.size):
            return 1
        if self._outranked is not None and self.queue.size:
            lower = self._outranked(self.running)
            if lower is not None:
                return 1  # the first that waits has a place, and may lose it
        steps = UNLIMITED
        for seq, chunk in batch.prefills:
            if chunk == 1:
                return 1
            repeats = (seq.prefill_end - seq.base) // chunk + 1
            if repeats == 1:
                return 1
            if repeats < steps:
                steps = repeats
        if batch.decoding:
            # the epoch already counts this step
            finish = decodes.steps_to_finish() + 1
            if finish < steps:
                steps = finish
        if steps > 1 and most_blocks_due(batch, blocks, steps - 1) > blocks.free:
            steps = 1 + steps_that_fit(batch, blocks, decodes, steps - 1)
        if self._steady_steps is not None and self.queue.size and steps > 1:
            steps = min(steps, self._steady_steps(batch))
        return steps

    def advance(self, batch: Batch, steps: int) -> None:
        """Schedule `batch` again until it counts `steps` steps, at most its horizon.

        Called once a batch, before anything else is scheduled.
        """
        decodes = self.decodes
        more = steps - 1
        if more:
            if batch.prefills:
                due = blocks_due(batch, self.blocks, decodes, more)
            else:
                due = decodes.blocks_due(more)
            if due:
                self.blocks.take_counted(due)
            for seq, chunk in batch.prefills:
                seq.base += chunk * more
            if batch.decoding:
                decodes.epoch += more
        if batch.decoding:
            batch.exhausted = decodes.pop_finished()
        if batch.prefills:
            self._complete_prefills(batch)
        self._exhausted += len(batch.exhausted)
        if self._on_served is not None:
            self._on_served(batch, steps)

    def _complete_prefills(self, batch: Batch) -> None:
        for seq, _ in batch.prefills:
            if seq.base < seq.prefill_end:
                continue
            self._prefills.remove(seq)
            batch.completed += (seq,)
            steps = seq.output_limit - seq.generated - 1
            if steps:
                self.decodes.join(seq, steps)
                if seq.admission > self._last_joined:
                    self._last_joined = seq.admission
            else:
                batch.exhausted += (seq,)
        if len(batch.exhausted) > 1:
            batch.exhausted = tuple(sorted(batch.exhausted, key=_admission))

    def output(self, batch: Batch) -> list[Sequence]:
        """Take what the advanced batch's last step produced; returns the finished, in order."""
        finished: list[Sequence] = []
        if not batch.exhausted:
            return finished
        for seq in batch.exhausted:
            if seq.status == FINISHED:  # aborted meanwhile
                continue
            seq.generated = seq.output_limit
            if seq.status == RUNNING:
                seq.status = FINISHED
                del self.running[seq]
                self._exhausted -= 1
                if seq.ahead:
                    seq.ahead = 0
                    self._ahead -= 1
                self.blocks.release(seq, seq.base, seq.base)
            else:  # preempted with its last token in flight
                self._leave_queue(seq)
                self._forget_swapped(seq)
                seq.status = FINISHED
            if self._on_ended is not None:
                self._on_ended(seq)
            finished.append(seq)
        return finished

    # ---- preemption

    def _preempt(self, seq: Sequence, batch: Batch, undone: int) -> None:
        """Free all of a running sequence's blocks and queue it again.

        `undone`: tokens it was granted in this step before, which are not computed after all.
        """
        del self.running[seq]
        decodes = self.decodes
        computed = decodes.computed(seq)
        written = computed if seq.decoding else computed - undone
        granted = seq.stamp == self._steps and seq.decoding
        registered = self.blocks.prefix.registered_tokens(seq)
        if granted:
            computed += 1
            registered = computed
            if self._asynchronous and not seq.ahead:
                registered = max(seq.prefill_end, computed - 1)
        if self._executed and registered > written:
            registered = written
        self._stop_computing(seq)
        if self._swap and self.tiers is not None:
            seq.swapped = self.tiers.swap_out(seq, written, self.blocks.block_tokens)
        self.blocks.release(seq, computed, registered)
        seq.status = WAITING
        seq.base = 0
        seq.preemptions += 1
        if self._on_queued is not None:
            self._on_queued(seq)
        self.queue.put_back(seq)
        batch.preempted += (seq,)

    def _forget_swapped(self, seq: Sequence) -> None:
        if seq.swapped and self.tiers is not None:
            self.tiers.forget(seq)
            seq.swapped = 0

    def _stop_computing(self, seq: Sequence) -> None:
        """Take a running sequence out of the decode set or the prefills; keep what it generated."""
        if seq.decoding:
            seq.generated = seq.output_limit - (seq.finish_epoch - self.decodes.epoch)
            self.decodes.leave(seq)
        elif seq.base < seq.prefill_end or seq in self._prefills:
            self._prefills.remove(seq)
        else:
            seq.generated = seq.output_limit
            self._exhausted -= 1
        if seq.ahead:
            seq.ahead = 0
            self._ahead -= 1

    def _left_behind(self, batch: Batch) -> None:
        """The last token of those left out will be known when they are granted the next."""
        if self._asynchronous:
            for seq in batch.left_out:
                if not seq.ahead:
                    self._ahead += 1
                seq.ahead = 1

    def _catch_up(self, seq: Sequence) -> None:
        """A sequence that was left out is granted a token again: once, then it is like others."""
        if seq.ahead == 1:
            seq.ahead = 2
        else:
            seq.ahead = 0
            self._ahead -= 1


def _admission(seq: Sequence) -> int:
    return seq.admission
