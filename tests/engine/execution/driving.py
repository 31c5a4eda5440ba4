"""A scheduler that decides by the toss of a coin, and what its sequences ought to have said."""

import json
from collections import deque
from pathlib import Path
from random import Random

import torch

from engine.config import CacheSettings, EngineSettings, SchedulerSettings
from engine.execution.executor import TorchExecutor
from engine.execution.inputs import StepInput
from engine.execution.kvcache import KvPool
from engine.execution.model import Model
from engine.execution.sampling import sample
from engine.sequence import Sequence
from engine.work import Flight, Generation, Sampling, Share, StepOutput, Work
from traces.request import Request

VOCAB = 97
BLOCK_TOKENS = 4
MAX_NUM_SEQS = 6
MAX_MODEL_LEN = 96


def model_folder(folder: Path, **changes) -> str:
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": VOCAB,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    return str(folder)


def settings(folder: Path, **changes) -> EngineSettings:
    """Of a tiny dummy model on a CPU; a `scheduler` among the changes is merged."""
    scheduler = {
        "max_num_seqs": MAX_NUM_SEQS,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_batched_tokens": 64,
    }
    scheduler |= changes.pop("scheduler", {})
    cache = {"block_tokens": BLOCK_TOKENS, "prefix_caching": False} | changes.pop("cache", {})
    values = {"model": model_folder(folder), "weights": "dummy", "device": "cpu", "num_blocks": 40}
    return EngineSettings(
        **(values | changes),
        scheduler=SchedulerSettings(**scheduler),
        cache=CacheSettings(**cache),
    )


def exaggerate(model: Model, factor: float = 6.0) -> None:
    """Larger weights: what is attended to then matters for the next token."""
    for layer in model.weights.layers:
        for matrix in (layer.qkv, layer.output, layer.gate_up, layer.down):
            matrix.mul_(factor)


def generation(
    number: int,
    prompt: list[int],
    outputs: int,
    *,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    forced: tuple[int, ...] = (),
) -> Generation:
    seq = Sequence(Request(number, 0.0, len(prompt), outputs), number, 0)
    return Generation(seq, list(prompt), sampling, forced)


def some_generations(random: Random, count: int, *, sampled: bool = False) -> list[Generation]:
    made: list[Generation] = []
    for number in range(count):
        prompt = [random.randrange(VOCAB) for _ in range(random.randint(1, 30))]
        outputs = random.randint(1, 14)
        sampling = Sampling()
        if sampled and random.random() < 0.7:
            top_p = random.choice((1.0, 0.9, 0.3))
            sampling = Sampling(random.choice((0.5, 1.0, 3.0)), top_p, random.getrandbits(63))
        forced = tuple(random.randrange(VOCAB) for _ in range(random.choice((0, 0, 3, 20))))
        made.append(generation(number, prompt, outputs, sampling=sampling, forced=forced))
    return made


class Driver:
    """Serves generations through an executor in a random order of steps.

    Sequences are left out of steps, prefill in random chunks, are preempted and come back. `depth`
    steps are launched before the output of the oldest is looked at: 2 is asynchronous scheduling.
    Blocks are named at random, and used again as soon as they are free.
    """

    def __init__(
        self,
        executor: TorchExecutor,
        random: Random,
        depth: int = 1,
        *,
        preempting: float = 0.1,
        decoding: float = 0.8,
        arriving: float = 0.5,
    ) -> None:
        self.executor = executor
        self.random = random
        self.depth = depth
        self.preempting, self.decoding, self.arriving = preempting, decoding, arriving
        self.free = list(range(1, executor.num_blocks))
        random.shuffle(self.free)
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []
        self.flights: deque[tuple[Flight, Work, list[bool]]] = deque()
        self.preemptions = 0
        self.steps: list[tuple[Work, StepOutput]] = []

    def serve(self, generations: list[Generation]) -> None:
        self.waiting.extend(generations)
        while self.waiting or self.running:
            self.launch(self.schedule())
            if len(self.flights) == self.depth:
                self.take_output()
        while self.flights:
            self.take_output()

    def schedule(self) -> Work:
        if self.running and self.random.random() < self.preempting:
            self.preempt(self.random.choice(self.running))
        while self.waiting and len(self.running) < MAX_NUM_SEQS:
            head = self.waiting[0]
            if self.in_flight(head) or self.random.random() > self.arriving:
                break
            self.waiting.popleft()
            head.seq.base, head.seq.prefill_end = 0, len(head.tokens)
            self.running.append(head)
        work = Work()
        for one in list(self.running):
            if one in self.running:
                self.share(one, work)
        return work

    def share(self, one: Generation, work: Work) -> None:
        seq, random = one.seq, self.random
        left = seq.prefill_end - seq.base
        if left <= 0 and seq.base - seq.prompt_tokens + 1 >= seq.output_limit:
            return  # its last token is in flight
        if left <= 0 and random.random() > self.decoding:
            return
        chunk = min(random.randint(1, 24), left) if left > 0 else 1
        while -(-(seq.base + chunk) // BLOCK_TOKENS) > len(seq.table):
            if not self.free:
                shared = {id(s.generation) for s in work.decodes + work.prefills}
                victims = [g for g in self.running if id(g) not in shared]
                self.preempt(random.choice(victims))
                if one not in self.running:
                    return
                continue
            seq.table.append(self.free.pop())
        seq.base += chunk
        (work.prefills if left > 0 else work.decodes).append(Share(one, seq.base, chunk))

    def preempt(self, one: Generation) -> None:
        self.preemptions += 1
        self.running.remove(one)
        self.release(one)
        self.waiting.append(one)

    def release(self, one: Generation) -> None:
        self.executor.drop(one.seq)
        self.free += one.seq.table
        self.random.shuffle(self.free)
        one.seq.table = []

    def launch(self, work: Work) -> None:
        given = [True] * len(work.decodes)
        given += [share.context == share.generation.seq.prefill_end for share in work.prefills]
        self.flights.append((self.executor.launch(work), work, given))

    def take_output(self) -> None:
        flight, work, given = self.flights.popleft()
        output = flight.wait()
        self.steps.append((work, output))
        shares = work.decodes + work.prefills
        for share, token, gives in zip(shares, output.tokens, given, strict=True):
            if gives:
                share.generation.tokens.append(token)
                self.finish(share.generation)

    def finish(self, one: Generation) -> None:
        if len(one.output) < one.seq.output_limit:
            return
        if one in self.running:
            self.running.remove(one)
            self.release(one)
        else:
            self.waiting.remove(one)

    def in_flight(self, one: Generation) -> bool:
        return any(
            gives and share.generation is one
            for _, work, given in self.flights
            for share, gives in zip(work.decodes + work.prefills, given, strict=True)
        )


def all_logits(executor: TorchExecutor, tokens: list[int]) -> torch.Tensor:
    """[tokens, vocab]: the logits after each token, from one pass over all of them, alone."""
    model, pool = executor.runner.model, executor.runner.pool
    count, device = len(tokens), pool.buffer.device
    blocks = -(-count // pool.block_tokens)
    alone = KvPool(pool.layout, blocks + 1, device=device, dtype=pool.dtype, rows=2)

    def whole(*numbers: int) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=device)

    step = StepInput(
        tokens=torch.tensor(tokens, device=device),
        positions=torch.arange(count, dtype=torch.int32, device=device),
        token_rows=torch.ones(count, dtype=torch.int32, device=device),
        tables=torch.stack((whole(*[0] * blocks), whole(*range(1, blocks + 1)))),
        rows=whole(1),
        context=whole(count),
        starts=whole(0, count),
        decodes=0,
        max_chunk=count,
        max_context=count,
    )
    with torch.inference_mode():
        return model.logits(model.forward(step, alone))


def expected_output(executor: TorchExecutor, one: Generation) -> list[int]:
    """What a generation says if each token follows from those that it said before."""
    prompt = one.seq.prompt_tokens
    logits = all_logits(executor, one.tokens[:-1])[prompt - 1 :]
    count, sampling = len(logits), one.sampling
    device = logits.device
    tokens = sample(
        logits,
        torch.full((count,), sampling.seed, device=device),
        torch.arange(prompt, prompt + count, device=device),
        torch.full((count,), sampling.temperature, device=device),
        torch.full((count,), sampling.top_p, device=device),
    ).tolist()
    return [*one.forced[:count], *tokens[len(one.forced) :]]


def assert_right(executor: TorchExecutor, generations: list[Generation]) -> None:
    for one in generations:
        assert len(one.output) == one.seq.output_limit
        assert one.output == expected_output(executor, one)
