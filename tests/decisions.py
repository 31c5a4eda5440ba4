"""Replay a recorded case of vLLM's scheduler and print the first difference.

    python -m tests.decisions CASE_DIR [CASE_DIR ...]

Every field of every step is compared, block names where they were recorded, once step by step
and once fast-forwarded.
"""

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibration.costs import LinearCost, duration_ps, steps_to_cover
from engine.batch import Batch
from engine.config import CacheSettings, SchedulerSettings
from engine.demand import blocks_due
from engine.prefix import Piece
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from traces.request import Request

PS = 1000  # picoseconds in the recorded nanosecond
Record = dict[str, Any]


def rows(path: Path) -> list[Record]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def as_requests(recorded: list[Record], block_tokens: int) -> list[tuple[Request, str]]:
    """Requests in trace form, each with the id it was recorded under.

    Content is interned block by block, so equal chained hashes mean equal tokens.
    """
    interned: dict[tuple[int, Any], int] = {}

    def chain(parts: Iterator[Any]) -> tuple[int, ...]:
        hashes: list[int] = []
        for part in parts:
            parent = hashes[-1] if hashes else -1
            hashes.append(interned.setdefault((parent, part), len(interned)))
        return tuple(hashes)

    requests: list[tuple[Request, str]] = []
    for number, row in enumerate(recorded):
        tokens = row.get("prompt_token_ids")
        hashes: tuple[int, ...] = ()
        hash_tokens = hashed = 0
        if tokens is not None:
            prompt = len(tokens)
            known = tokens + (row.get("output_token_ids") or [])
            hash_tokens = block_tokens
            hashed = len(known) // block_tokens * block_tokens
            hashes = chain(
                tuple(known[i : i + block_tokens]) for i in range(0, hashed, block_tokens)
            )
        else:
            prompt = row["input_tokens"]
            ids = row.get("hash_ids")
            if ids:
                hash_tokens = row["hash_block_size"]
                hashed = min(prompt, len(ids) * hash_tokens)
                hashes = chain(iter(ids[: -(-hashed // hash_tokens)]))
        request = Request(
            request_id=number,
            arrival_s=row["arrival"],
            prompt_tokens=prompt,
            output_tokens=row["output_tokens"],
            hashes=hashes,
            hash_tokens=hash_tokens,
            hashed_tokens=hashed,
            priority=row.get("priority", 0),
        )
        requests.append((request, str(row["id"])))
    return requests


def settings_of(params: Record) -> tuple[SchedulerSettings, CacheSettings]:
    scheduler = SchedulerSettings(
        max_num_seqs=params["max_num_seqs"],
        max_num_batched_tokens=params["max_num_batched_tokens"],
        max_model_len=params["max_model_len"],
        order=params["policy"],
        chunked_prefill=params["chunked"],
        long_prefill_token_threshold=params["long_prefill_token_threshold"],
        reserve_full_sequence=not params["no_reserve_full_isl"],
        watermark=params["watermark"],
        async_scheduling=params["async_scheduling"],
    )
    cache = CacheSettings(
        block_tokens=params["block_size"],
        prefix_caching=not params["no_prefix_caching"],
        eviction=params.get("eviction", "lru"),
    )
    return scheduler, cache


def unreferenced(policy: Any) -> list[Piece]:
    """The pieces an eviction policy keeps, an audited one's or one of our own."""
    if hasattr(policy, "sizes"):
        return list(policy.sizes)
    if hasattr(policy, "_queues"):
        return [piece for queue in policy._queues for piece in queue.pieces()]
    if hasattr(policy, "_queue"):
        return policy._queue.pieces()
    if hasattr(policy, "_pushes"):
        return list(policy._pushes)
    pieces: list[Piece] = []
    piece = policy._ends.after
    while piece is not policy._ends:
        assert piece.after.before is piece
        pieces.append(piece)
        piece = piece.after
    return pieces


def cached_contents(core: Scheduler) -> int:
    """Different contents in the prefix cache, by a walk over every piece."""
    blocks = core.blocks
    if not blocks.caching:
        return 0
    pieces = {id(piece): (piece, piece.end) for piece in unreferenced(blocks.eviction)}
    for seq in core.running:
        bound = seq.open.start
        pieces[id(seq.open)] = (seq.open, blocks.prefix.end_of(seq.open))
        for first in reversed(seq.held):
            link = first
            while link is not None and link.start < bound:
                pieces[id(link)] = (link, link.end)
                link = link.right
            bound = first.start
    if blocks.copies == 0:
        return sum(end - piece.start for piece, end in pieces.values())
    contents = set()
    for piece, end in pieces.values():
        for block in range(piece.start, end):
            if piece.owner is None:
                contents.add((id(piece), block))
            elif block < piece.owner.shared_blocks:
                contents.add(blocks.prefix.key(piece.owner, block))
            else:
                contents.add((piece.owner.number, block))
    return len(contents)


class Decider:
    """Drives the scheduler on a virtual clock and writes down what it decides."""

    def __init__(self, params: Record, recorded: list[Record], *, exact: bool, named: bool) -> None:
        scheduler, cache = settings_of(params)
        requests = as_requests(recorded, cache.block_tokens)
        self.exact = exact
        self.named = named
        self.core = Scheduler(scheduler, cache, params["num_blocks"], named=named)
        unit = params["step_time_ns"]
        self.cost = LinearCost(
            step_ps=unit["d"] * PS,
            prefill_token_ps=unit["a"] * PS,
            decode_ps=unit["b"] * PS,
            context_token_ps=unit["c"] * PS,
        )
        self.ids: dict[Sequence, str] = {}
        self.all: list[Sequence] = []
        for request, name in requests:
            seq = self.core.sequence(request, round(request.arrival_s * 1e6) * 1000 * PS)
            self.ids[seq] = name
            self.all.append(seq)
        self.arrivals = sorted(self.all, key=lambda seq: seq.arrival)
        self.next = 0
        self.now = 0
        self.device_free = 0
        self.steps: list[Record] = []
        self.seen_blocks: dict[Sequence, int] = {}

    def run(self, max_steps: int = 10**9) -> None:
        """Serve all requests. Raises RuntimeError if one can never be placed."""
        asynchronous = self.core.settings.async_scheduling
        pending: tuple[Batch, list[Record], int] | None = None
        while len(self.steps) < max_steps:
            self.core.moment.now = self.now
            self.drain()
            evicted = self.core.blocks.evicted
            batch = self.core.schedule()
            if batch is None:
                if pending is not None:
                    self.take_output(*pending)
                    pending = None
                    continue
                if self.next == len(self.arrivals):
                    if not self.core.idle:
                        raise RuntimeError("a request can never be placed")
                    return
                if not self.core.idle:
                    raise RuntimeError("a request can never be placed")
                self.now = self.arrivals[self.next].arrival
                continue
            start = max(self.now, self.device_free)
            first, growth, _ = self.cost.progression(batch)
            steps = self.segment(batch, start, first, growth)
            records = self.describe(batch, start, first, growth, steps, evicted)
            end = self.device_free = start + duration_ps(first, growth, steps)
            if pending is not None:
                self.take_output(*pending)
                pending = None
            self.finish_description(batch, records)
            if asynchronous:
                self.now = max(self.now, start + duration_ps(first, growth, steps - 1))
                pending = (batch, records, end)
            else:
                self.take_output(batch, records, end)
        raise RuntimeError("too many steps")

    def drain(self) -> None:
        while self.next < len(self.arrivals) and self.arrivals[self.next].arrival <= self.now:
            self.core.add(self.arrivals[self.next])
            self.next += 1

    def segment(self, batch: Batch, start: int, first: int, growth: int) -> int:
        """Steps to take: the horizon, cut where the next arrival is seen."""
        if self.exact:
            return 1
        steps = batch.horizon
        if steps > 1 and self.next < len(self.arrivals):
            wait = self.arrivals[self.next].arrival - start
            reach = steps_to_cover(first, growth, wait) if wait > 0 else 0
            if self.core.settings.async_scheduling:
                reach += 1
            steps = min(steps, max(reach, 1))
        return steps

    def describe(
        self, batch: Batch, start: int, first: int, growth: int, steps: int, evicted: int
    ) -> list[Record]:
        core = self.core
        scheduled: dict[str, int] = {}
        chunks = dict(batch.prefills)
        left_out = set(batch.left_out)
        for seq in core.running:
            if seq in chunks:
                scheduled[self.ids[seq]] = chunks[seq]
            elif seq.decoding and seq not in left_out and batch.decoding:
                scheduled[self.ids[seq]] = 1
        names: dict[str, list[int]] = {}
        for seq in batch.admitted:
            self.seen_blocks[seq] = 0
        if self.named:
            for seq in core.running:
                if self.ids[seq] in scheduled:
                    new = seq.table[self.seen_blocks[seq] :]
                    if new:
                        names[self.ids[seq]] = new
                        self.seen_blocks[seq] = len(seq.table)
        records: list[Record] = []
        for step in range(steps):
            begin = start + duration_ps(first, growth, step)
            records.append(
                {
                    "t_sched_ns": self.now // PS if step == 0 else None,
                    "t_start_ns": begin // PS,
                    "t_end_ns": (begin + first + growth * step) // PS,
                    "scheduled": scheduled,
                    "new": [],
                    "resumed": [],
                    "preempted": [],
                    "cached": {},
                    "prefill_tokens": batch.prefill_tokens,
                    "decode_seqs": batch.decodes,
                    "context_tokens": batch.context_tokens
                    + step * (batch.prefill_tokens + batch.decodes),
                    "running": len(core.running),
                    "waiting": core.waiting,
                    "free_blocks": core.blocks.free,
                    "evicted": 0,
                    "cached_hashes": None,
                    "block_ids": {},
                    "finished": [],
                    "free_blocks_end": None,
                }
            )
        head = records[0]
        head["new"] = [self.ids[seq] for seq in batch.admitted if not seq.preemptions]
        head["resumed"] = [self.ids[seq] for seq in batch.admitted if seq.preemptions]
        head["preempted"] = [self.ids[seq] for seq in batch.preempted]
        for seq in batch.admitted:
            hit = seq.resumed_cached[-1] if seq.preemptions else seq.cached_tokens
            head["cached"][self.ids[seq]] = hit
            if seq.first_scheduled < 0:
                seq.first_scheduled = start
        head["evicted"] = core.blocks.evicted - evicted
        head["cached_hashes"] = cached_contents(core)
        head["block_ids"] = names
        self.steps.extend(records)
        return records

    def finish_description(self, batch: Batch, records: list[Record]) -> None:
        """Schedule the segment's other steps and write down what that did."""
        core = self.core
        free, evicted = core.blocks.free, core.blocks.evicted
        for step in range(1, len(records)):
            records[step]["running"] = len(core.running)  # the output before may have ended some
            records[step]["free_blocks"] = free - blocks_due(batch, core.blocks, core.decodes, step)
        core.advance(batch, len(records))
        if len(records) > 1:
            # evictions inside a segment are known in sum
            records[-1]["evicted"] = core.blocks.evicted - evicted
            for record in records[1:-1]:
                record["evicted"] = None
            assert records[-1]["free_blocks"] == core.blocks.free

    def take_output(self, batch: Batch, records: list[Record], end: int) -> None:
        self.now = self.core.moment.now = max(self.now, end)
        finished = self.core.output(batch)
        for seq in batch.completed:
            if seq.first_token < 0:
                seq.first_token = end
        for seq in finished:
            seq.finish = end
        records[-1]["finished"] = [self.ids[seq] for seq in finished]
        records[-1]["free_blocks_end"] = self.core.blocks.free

    def per_request(self) -> list[Record]:
        return [
            {
                "id": self.ids[seq],
                "first_scheduled_ns": seq.first_scheduled // PS,
                "first_token_ns": seq.first_token // PS,
                "finish_ns": seq.finish // PS,
                "preemptions": seq.preemptions,
                "cached_tokens": seq.cached_tokens,
                "resumed_cached_tokens": list(seq.resumed_cached),
            }
            for seq in self.all
        ]


def first_difference(want: list[Record], got: list[Record]) -> str | None:
    """Where recorded and decided steps part, in words; None if nowhere."""
    evicted = 0
    for i, (w, g) in enumerate(zip(want, got, strict=False)):
        evicted += w.get("evicted", 0)
        for key, value in w.items():
            if key not in g or (g[key] is None and key != "evicted"):
                continue
            if key == "evicted":
                if g[key] is None:
                    continue
                value, evicted = evicted, 0
            same = g[key] == value
            if key == "scheduled":
                same = same and list(g[key].items()) == list(value.items())
            if not same:
                return f"record {i}, {key}: recorded {value}, decided {g[key]}"
    if len(want) != len(got):
        return f"{len(want)} records recorded, {len(got)} decided"
    return None


def invariants(decider: Decider) -> str | None:
    """What must hold when all requests are served."""
    blocks = decider.core.blocks
    if blocks.free != blocks.usable:
        return f"{blocks.usable - blocks.free} blocks not free at the end"
    if blocks.contested or decider.core.decodes.size:
        return "sequences left behind"
    return None


def compare(
    params: Record, requests: list[Record], steps: list[Record], per_request: list[Record]
) -> str | None:
    """First difference between a recorded case and the core, stepping and fast-forwarding."""
    for mode in ("named", "exact", "fast"):
        decider = Decider(params, requests, exact=mode != "fast", named=mode == "named")
        decider.run()
        want = steps
        if mode != "named" or not params["dump_blocks"]:
            want = [{k: v for k, v in step.items() if k != "block_ids"} for step in steps]
        difference = (
            first_difference(want, decider.steps)
            or first_difference(per_request, decider.per_request())
            or invariants(decider)
        )
        if difference:
            return f"{mode}: {difference}"
    return None


def compare_case(case: Path) -> str | None:
    """First difference between the case recorded in folder `case` and the core."""
    params = json.loads((case / "meta.json").read_text())["params"]
    return compare(
        params,
        rows(case / "requests.jsonl.gz"),
        rows(case / "steps.jsonl.gz"),
        rows(case / "per_request.jsonl.gz"),
    )


def main(cases: list[str]) -> int:
    failed = 0
    for case in cases:
        difference = compare_case(Path(case))
        failed += difference is not None
        print(f"{Path(case).name}: {difference or 'identical'}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
