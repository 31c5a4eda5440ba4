"""Replay what SGLang's radix trees did, as recorded, and print the first difference of each run.

    python -m tests.engine.radix_goldens FOLDER [FOLDER ...]

FOLDER holds `radix_*.json.gz` files; those over a trace need the folder of traces beside it.
Every field of every step is compared, and the tree at the end where it was recorded.
"""

import gzip
import json
import sys
from collections.abc import Iterator
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from engine.radix import RANKS, Content, RadixCache
from engine.radix.cache import Hold
from engine.radix.content import content_of
from engine.radix.node import Node
from traces.reader import open_trace
from traces.request import Request

Record = dict[str, Any]


@cache
def recorded(path: Path) -> Record:
    with gzip.open(path, "rt") as file:
        return json.load(file)


def cache_of(run: Record) -> RadixCache:
    """The cache that `run` was recorded on, empty."""
    rank = partial(RANKS[run["policy"]], **(run["config"] or {}))
    return RadixCache(run["capacity"], run["page_size"], rank, run["cache"])


class Tokens:
    """Contents for lists of tokens, hashed by `hash_tokens` at a time.

    Where a hash stands for several tokens, a run of them is known by its first: no two differ
    further in. A last run that is cut short has the hash of the whole one.
    """

    def __init__(self, hash_tokens: int) -> None:
        self.hash_tokens = hash_tokens
        self._hashes: dict[tuple[int, int], int] = {}
        self._first: list[int] = []

    def content(self, tokens: list[int]) -> Content:
        hashes: list[int] = []
        for token in tokens[:: self.hash_tokens]:
            run = (hashes[-1] if hashes else -1, token)
            if run not in self._hashes:
                self._hashes[run] = len(self._first)
                self._first.append(token)
            hashes.append(self._hashes[run])
        return Content(tuple(hashes), self.hash_tokens, len(tokens))

    def first(self, node: Node) -> int:
        """The first token of `node`."""
        return self._first[node.hashes[0]] + node.start % self.hash_tokens


def tokens_of(blocks: list[int], length: int, block_tokens: int) -> list[int]:
    """The first `length` tokens of recorded `blocks`."""
    every = [block * block_tokens + j for block in blocks for j in range(block_tokens)]
    return every[:length]


def answers(ops: list[list[Any]], block_tokens: int) -> dict[str, list[int]]:
    """The tokens that each request decodes."""
    return {op[1]: tokens_of(op[2], op[3], block_tokens) for op in ops if op[0] == "decode"}


def hash_sizes(case: Record, block_tokens: int) -> list[int]:
    """How many tokens a hash may stand for: whole blocks, unless an answer begins within one."""
    decoding = {op[1] for op in case["ops"] if op[0] == "decode"}
    begun = {op[1]: op[3] for op in case["ops"] if op[0] == "begin"}
    aligned = all(begun[name] % block_tokens == 0 for name in decoding)
    return [1, 2, block_tokens] if aligned else [1]


def difference(case: Record, run: Record, block_tokens: int, hash_tokens: int) -> str | None:
    """Where our cache first departs from a recorded run of small steps; None if nowhere."""
    tokens = Tokens(hash_tokens)
    cache = cache_of(run)
    decoded = answers(case["ops"], block_tokens)
    holds: dict[str, Hold] = {}
    for number, (op, expected) in enumerate(zip(case["ops"], run["steps"], strict=True)):
        step = _step(cache, tokens, holds, decoded, op, block_tokens)
        step["available"] = cache.available_tokens
        step["evictable"] = cache.evictable_tokens
        step["protected"] = cache.protected_tokens
        if step != expected:
            return f"step {number}, {op}: {step}; expected {expected}"
    rows = sorted(
        [node.start, node.tokens, tokens.first(node), node.hits, node.priority, node.locks]
        for node in cache.tree.nodes()
    )
    if rows != run["tree_at_end"]:
        return f"tree at end: {rows}; expected {run['tree_at_end']}"
    return None


def _step(
    cache: RadixCache,
    tokens: Tokens,
    holds: dict[str, Hold],
    decoded: dict[str, list[int]],
    op: list[Any],
    block_tokens: int,
) -> Record:
    kind, name = op[:2]
    if kind == "begin":
        prompt = tokens_of(op[2], op[3], block_tokens)
        content = tokens.content(prompt + decoded.get(name, []))
        hold = cache.begin(content, len(prompt), op[4])
        if hold is None:
            return {"rejected": True}
        holds[name] = hold
        return {"hit": hold.hit_tokens, "evicted": _evicted(hold, tokens)}
    hold = holds[name]
    if kind == "checkpoint":
        return {"freed_duplicates": cache.checkpoint(hold)}
    if kind == "decode":
        assert cache.decode(hold, len(decoded[name]))
        return {"evicted": _evicted(hold, tokens)}
    return {"freed": cache.finish(holds.pop(name))}


def _evicted(hold: Hold, tokens: Tokens) -> list[list[int]]:
    return [[node.start, node.tokens, tokens.first(node)] for node in hold.evicted]


def trace_requests(traces: Path, recording: Record) -> Iterator[tuple[Request, list[int]]]:
    """The requests of a recording over a trace, each with its block ids as published."""
    family, name = recording["trace"].lower().split()
    path = traces / family / f"{name}_trace.jsonl"
    with path.open() as file:
        pairs = zip(open_trace(path), file, strict=True)
        for request, line in islice(pairs, recording["requests"]):
            yield request, json.loads(line)["hash_ids"]


def trace_difference(requests: list[tuple[Request, list[int]]], run: Record) -> str | None:
    """Where our cache first departs from a recorded run over `requests`; None if nowhere."""
    cache = cache_of(run)
    ids: dict[int, int] = {}
    nodes = 0
    for number, (request, blocks) in enumerate(requests):
        ids.update(zip(request.hashes, blocks, strict=True))
        hold = cache.begin(content_of(request), request.prompt_tokens)
        assert hold is not None
        cache.finish(hold)
        nodes += len(hold.evicted)
        seen: Record = {
            "hit": hold.hit_tokens,
            "evicted_tokens_per_request": sum(node.tokens for node in hold.evicted),
            "evicted": [
                field
                for node in hold.evicted
                for field in (ids[node.hashes[0]], node.start % request.hash_tokens, node.tokens)
            ],
        }
        for name, value in seen.items():
            if name in run and run[name][number] != value:
                return f"request {number}: {name} {value}; expected {run[name][number]}"
    at_end = {
        "available": cache.available_tokens,
        "evictable": cache.evictable_tokens,
        "protected": cache.protected_tokens,
    }
    if at_end != run["at_end"] or nodes != run["evicted_nodes"]:
        return f"at end: {at_end}, {nodes} nodes evicted; expected {run['at_end']}"
    return None


def runs_of(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Every recorded run in `folder`, and where our cache first departs from it."""
    for path in sorted(folder.glob("radix_*.json.gz")):
        recording = recorded(path)
        if "trace" in recording:
            requests = list(trace_requests(folder.parent / "traces", recording))
            for run in recording["runs"]:
                yield f"{path.name} {title(run)}", trace_difference(requests, run)
            continue
        for name, case in recording["cases"].items():
            for run in case["runs"]:
                for hash_tokens in hash_sizes(case, recording["block_size"]):
                    said = difference(case, run, recording["block_size"], hash_tokens)
                    yield f"{path.name} {name} {title(run)} by {hash_tokens}", said


def title(run: Record) -> str:
    return " ".join(str(run[key]) for key in ("cache", "policy", "capacity", "page_size"))


def main() -> None:
    runs = [run for folder in sys.argv[1:] for run in runs_of(Path(folder))]
    wrong = [(name, said) for name, said in runs if said is not None]
    for name, said in wrong:
        print(f"{name}: {said}")
    print(f"{len(runs) - len(wrong)} of {len(runs)} runs are as recorded")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
