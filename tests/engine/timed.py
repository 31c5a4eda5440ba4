"""Recorded cases served by the engine's own loop, on a clock that follows the recorded costs."""

from typing import Any

from engine.config import EngineSettings
from engine.llm import LLMEngine
from engine.sequence import Sequence
from engine.work import Executor, Flight, Generation, Share, StepOutput, Work
from tests.decisions import PS, Record, settings_of
from traces.request import Request


class StepClock:
    """Stands still but when a step's output is waited for, or the next arrival."""

    def __init__(self) -> None:
        self.time = 0

    def now(self) -> int:
        return self.time

    def wait_until(self, time: int) -> None:
        self.time = max(self.time, time)


class Timed:
    """An executor whose steps take the recorded linear cost, and that writes down what it ran."""

    def __init__(self, executor: Executor, params: Record, clock: StepClock) -> None:
        self.executor = executor
        self.num_blocks = executor.num_blocks
        self.block_bytes = executor.block_bytes
        self.vocab = executor.vocab
        self.clock = clock
        unit = params["step_time_ns"]
        self.cost = (unit["a"], unit["b"], unit["c"], unit["d"])
        self.seen: dict[Sequence, int] = {}
        self.free = 0
        self.steps: list[Record] = []

    def launch(self, work: Work) -> "TimedFlight":
        shares = sorted(work.decodes + work.prefills, key=lambda s: s.generation.seq.admission)
        prefill, decodes, context = figures_of(shares)
        a, b, c, d = self.cost
        start = max(self.clock.now(), self.free)
        self.free = start + PS * (a * prefill + b * decodes + c * context + d)
        self.steps.append(
            {
                "t_start_ns": start // PS,
                "t_end_ns": self.free // PS,
                "scheduled": [(number_of(share), share.chunk) for share in shares],
                "block_ids": {
                    number_of(share): new for share in shares if (new := self.new_blocks(share))
                },
                "prefill_tokens": prefill,
                "decode_seqs": decodes,
                "context_tokens": context,
            }
        )
        return TimedFlight(self.executor.launch(work), self.clock, self.free)

    def new_blocks(self, share: Share) -> list[int]:
        seq = share.generation.seq
        new = seq.table[self.seen.get(seq, 0) :]
        self.seen[seq] = len(seq.table)
        return new

    def drop(self, seq: Sequence) -> None:
        self.seen.pop(seq, None)
        self.executor.drop(seq)

    def lost(self) -> tuple[int, ...]:
        return ()

    def close(self) -> None:
        self.executor.close()


class TimedFlight:
    def __init__(self, flight: Flight, clock: StepClock, end: int) -> None:
        self.flight = flight
        self.clock = clock
        self.end = end

    def wait(self) -> StepOutput:
        self.clock.wait_until(self.end)
        return self.flight.wait()


def number_of(share: Share) -> int:
    return share.generation.seq.request.request_id


def figures_of(shares: list[Share]) -> tuple[int, int, int]:
    """Prefill tokens, decodes and context, told apart as the recordings do."""
    prefill = decodes = context = 0
    for generation, reached, chunk in shares:
        context += reached
        if chunk == 1 and reached - 1 >= generation.seq.prompt_tokens:
            decodes += 1
        else:
            prefill += chunk
    return prefill, decodes, context


class Contents:
    """Token ids for recorded requests: equal content, equal ids, small numbers."""

    def __init__(self) -> None:
        self.ids: dict[Any, int] = {}

    def known(self, name: Any) -> int:
        return self.ids.setdefault(name, len(self.ids))

    def fresh(self, tokens: int) -> list[int]:
        return [self.known(("only", len(self.ids))) for _ in range(tokens)]

    def prompt(self, row: Record) -> list[int]:
        if row.get("prompt_token_ids") is not None:
            return [self.known(token) for token in row["prompt_token_ids"]]
        tokens = row["input_tokens"]
        size = row.get("hash_block_size", 0)
        hashed = [self.known(h * size + j) for h in row.get("hash_ids") or [] for j in range(size)]
        return hashed[:tokens] + self.fresh(tokens - len(hashed[:tokens]))

    def output(self, row: Record) -> list[int]:
        stated = [self.known(token) for token in row.get("output_token_ids") or []]
        return stated + self.fresh(row["output_tokens"] - len(stated))


def serve(
    params: Record, recorded: list[Record], make_executor: Any
) -> tuple[LLMEngine, Timed, list[Generation]]:
    """Serve a recorded case; `make_executor(num_blocks, block_tokens, vocab)` builds what runs it.

    Returns the engine, the executor's log, and the generations in recorded order.
    """
    contents = Contents()
    texts = [(contents.prompt(row), contents.output(row)) for row in recorded]
    scheduler, cache = settings_of(params)
    clock = StepClock()
    executor = make_executor(params["num_blocks"], cache.block_tokens, len(contents.ids))
    timed = Timed(executor, params, clock)
    chosen = EngineSettings(model="none", kv_dtype="fp32", scheduler=scheduler, cache=cache)
    it = LLMEngine(timed, chosen, clock=clock)
    arrivals = [round(row["arrival"] * 1e6) * 1000 * PS for row in recorded]
    coming = sorted(range(len(recorded)), key=lambda number: arrivals[number])
    served: dict[int, Generation] = {}
    while len(served) < len(coming) or it.work_left:
        while len(served) < len(coming) and arrivals[coming[len(served)]] <= clock.now():
            number = coming[len(served)]
            prompt, output = texts[number]
            request = Request(number, 0.0, 1, 1, priority=recorded[number].get("priority", 0))
            served[number] = it.add(
                prompt, len(output), forced=output, request=request, arrival=arrivals[number]
            )
        if not it.work_left:
            clock.wait_until(arrivals[coming[len(served)]])
            continue
        for generation in it.step():
            assert generation.output == list(generation.forced), generation.seq
    return it, timed, [served[number] for number in range(len(recorded))]


def first_difference(
    params: Record,
    recorded: list[Record],
    steps: list[Record],
    per_request: list[Record],
    make: Any,
) -> str | None:
    """Where the engine's loop and the recording part, in words; None if nowhere."""
    it, timed, generations = serve(params, recorded, make)
    names = [str(row["id"]) for row in recorded]
    log = [
        {
            **step,
            "scheduled": [(names[number], tokens) for number, tokens in step["scheduled"]],
            "block_ids": {names[number]: new for number, new in step["block_ids"].items()},
            "running": record["running"],
            "waiting": record["num_queued_requests"],
            "free_blocks": record["free_blocks"],
            "admitted": record["admitted"],
            "preempted": record["preempted"],
        }
        for step, record in zip(timed.steps, it.records, strict=True)
    ]
    for number, (want, got) in enumerate(zip(steps, log, strict=False)):
        expected = {
            **want,
            "scheduled": list(want["scheduled"].items()),
            "admitted": len(want["new"]) + len(want["resumed"]),
            "preempted": len(want["preempted"]),
        }
        for key, value in got.items():
            if key == "block_ids" and not params["dump_blocks"]:
                continue
            if value != expected[key]:
                return f"step {number}, {key}: recorded {expected[key]}, engine {value}"
    if len(steps) != len(log):
        return f"{len(steps)} steps recorded, engine took {len(log)}"
    for want, generation in zip(per_request, generations, strict=True):
        seq = generation.seq
        got = {
            "first_scheduled_ns": seq.first_scheduled // PS,
            "first_token_ns": seq.first_token // PS,
            "finish_ns": seq.finish // PS,
            "preemptions": seq.preemptions,
            "cached_tokens": seq.cached_tokens,
            "resumed_cached_tokens": list(seq.resumed_cached),
        }
        for key, value in got.items():
            if value != want[key]:
                return f"request {want['id']}, {key}: recorded {want[key]}, engine {value}"
    if it.scheduler.blocks.free != it.scheduler.blocks.usable:
        return "blocks leaked"
    return None
