"""Other traffic of the same kind, for replications: what else might have come."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Final, Literal

import numpy as np

from traces.errors import ConfigError, KvcastError
from traces.pipeline import Operation, TraceSettings, apply_operations, transformed
from traces.reader import Trace
from traces.request import Request
from traces.settings import load_settings
from traces.synthetic import SyntheticSpec, synthetic_trace

Method = Literal["same", "reseeded", "blocks"]

METHODS: Final[dict[Method, str]] = {
    "same": "the trace as it is",
    "reseeded": "the trace made anew with another seed",
    "blocks": "blocks of the trace, drawn with replacement",
}
"""Traffic of a replication, by the name of how it is drawn, in words."""

TRAFFIC: Final = 2
"""What a generator is for, beside those of sim.uncertainty: part of its seed."""

COMMON_LEAST: Final = 10
COMMON_SHARE: Final = 0.01
"""Content that more than this many conversations, and more than this share of them, have in common
is everybody's, as a system prompt is; what fewer share makes them belong together."""

CHECKED: Final = 100
"""Requests of a trace that its spec must give again."""

_HASH_BITS: Final = (1 << 63) - 1
_HASH_FACTOR: Final = 0x2545F4914F6CDD1D  # odd: multiplying by it modulo 2**63 loses nothing


@dataclass(frozen=True, slots=True)
class Traffic:
    """Which requests a replication serves."""

    method: Method = "same"
    blocks: int = 20
    """Pieces of equal duration that "blocks" cuts the trace into."""

    @property
    def in_words(self) -> str:
        """What is drawn, for the reader of an interval; empty if nothing is."""
        if self.method == "same":
            return ""
        if self.method == "blocks":
            return f"traffic ({self.blocks} {METHODS['blocks']})"
        return f"traffic ({METHODS[self.method]})"

    def requests(self, trace: TraceSettings, seed: int, replication: int) -> Iterable[Request]:
        """The requests of one replication; they follow from the arguments alone.

        Args:
            trace: the scenario's.
            seed: the scenario's.
            replication: from 1.

        Raises:
            TraceError: a trace that cannot be read.
            ConfigError: it cannot be made anew, and is to be.
        """
        random = np.random.default_rng(
            np.random.SeedSequence(seed, spawn_key=(replication, TRAFFIC))
        )
        if self.method == "blocks":
            drawn_from, hurry = before_hurry(trace)
            requests = resampled(list(drawn_from.open(seed)), self.blocks, random)
            return apply_operations(requests, hurry)
        if self.method == "reseeded":
            return _reseeded(trace, int(random.integers(1 << 32)))
        return trace.open(seed)


def traffic_for(trace: TraceSettings, method: str | None, blocks: int = 20) -> Traffic:
    """How to draw traffic like that of a trace.

    Args:
        trace: the scenario's.
        method: a name in METHODS; None: made anew if the trace can be, else blocks.
        blocks: of the method of this name.

    Raises:
        ConfigError: an unknown method, or one that the trace does not allow.
        TraceError: the trace cannot be opened.
    """
    if blocks < 2:
        raise ConfigError(f"--blocks: must be at least 2, got {blocks}")
    if method is None:
        return Traffic("reseeded" if _can_be_reseeded(trace) else "blocks", blocks)
    for known in METHODS:
        if method == known:
            if known == "reseeded" and not _can_be_reseeded(trace):
                raise ConfigError(
                    f"--traffic reseeded: {trace.path} cannot be made anew: it has arrivals of its"
                    " own and no spec beside it (its name with .yaml) that gives it again; expected"
                    " blocks or same"
                )
            return Traffic(known, blocks)
    raise ConfigError(f"--traffic: must be one of {', '.join(METHODS)}, got {method!r}")


def before_hurry(trace: TraceSettings) -> tuple[TraceSettings, tuple[Operation, ...]]:
    """A trace without the `compress_time` that its operations end with, and those operations.

    How fast a trace runs does not matter to which of its blocks are drawn: they are drawn before
    it, so that one trace at several rates gives the same blocks, to the last request.
    """
    operations = trace.operations
    end = len(operations)
    while end and operations[end - 1].compress_time is not None:
        end -= 1
    plain = trace.model_copy(update={"operations": operations[:end]})
    return plain, operations[end:]


def resampled(
    requests: Sequence[Request], blocks: int, random: np.random.Generator
) -> list[Request]:
    """A block bootstrap of a trace that leaves conversations whole.

    The trace is cut into `blocks` pieces of equal duration, and each place in time gets one of
    them, drawn with replacement: bursts up to the length of a block stay as they are (Carlstein,
    The Use of Subseries Values for Estimating the Variance of a General Statistic from a
    Stationary Sequence, Annals of Statistics 14, 1986). A piece is the conversations that *begin*
    in it: they move as a whole, turns, pauses and shared prefixes with them. What of them would
    come after the trace's end comes at its beginning instead, as conversations that were under way
    there (circular, after Politis and Romano, A Circular Block-Resampling Procedure for Stationary
    Data, 1992): the rate is the trace's own, every
    request comes as often as another on average, and a turn always follows the turn it continues.

    A conversation is a session, or a request without one; conversations that share content which
    is not common (COMMON_LEAST, COMMON_SHARE) move together. Drawn twice, it is two conversations:
    they share what is common, nothing else. What is lost are dependences longer than a block: a
    slow rise of the rate over the whole trace is shuffled.

    Args:
        requests: in arrival order; at least one.
        blocks: at least 2.
        random: draws the blocks.

    Returns:
        At least one request, in arrival order, numbered from 0.
    """
    families, common = _families(requests)
    members: dict[int, list[int]] = defaultdict(list)
    for index, family in enumerate(families):
        members[family].append(index)
    # as long after the last request as between two on average, the first comes again
    whole_s = requests[-1].arrival_s * len(requests) / max(len(requests) - 1, 1)
    length_s = whole_s / blocks
    pieces: list[list[int]] = [[] for _ in range(blocks)]
    for order, (family, (first, *_)) in enumerate(members.items()):
        # all at once: there is no time to cut, only a list
        start_s = requests[first].arrival_s
        at = int(start_s / length_s) if length_s else order * blocks // len(members)
        pieces[min(at, blocks - 1)].append(family)
    drawn = random.integers(blocks, size=blocks).tolist()
    while not any(pieces[piece] for piece in drawn):
        drawn = random.integers(blocks, size=blocks).tolist()

    copies: Counter[int] = Counter()
    sessions = count()
    moved: list[Request] = []
    for place, piece in enumerate(drawn):
        shift_s = (place - piece) * length_s
        for family in pieces[piece]:
            copy_of_round: dict[int, int] = {}
            begun: dict[tuple[int, int], tuple[int, int]] = {}
            for index in members[family]:
                request = requests[index]
                at_s = max(0.0, request.arrival_s + shift_s)
                past = int(at_s >= whole_s > 0)
                if past not in copy_of_round:
                    copy_of_round[past] = copies[family]
                    copies[family] += 1
                session_id, turn, think_s = request.session_id, request.turn, request.think_s
                if session_id >= 0:
                    if (past, session_id) not in begun:
                        begun[past, session_id] = (next(sessions), turn)
                    session_id, first_turn = begun[past, session_id]
                    turn -= first_turn
                    think_s = think_s if turn else 0.0
                moved.append(
                    request._replace(
                        arrival_s=at_s - past * whole_s,
                        session_id=session_id,
                        turn=turn,
                        think_s=think_s,
                        hashes=_of_copy(request.hashes, common, copy_of_round[past]),
                    )
                )
    moved.sort(key=lambda request: request.arrival_s)
    return [request._replace(request_id=number) for number, request in enumerate(moved)]


def _families(requests: Sequence[Request]) -> tuple[list[int], set[int]]:
    """The family of each request, numbered by its first one, and the hashes of common content."""
    conversation_of: list[int] = []
    known: dict[int, int] = {}
    content: list[set[int]] = []
    for request in requests:
        number = known.get(request.session_id) if request.session_id >= 0 else None
        if number is None:
            number = len(content)
            content.append(set())
            if request.session_id >= 0:
                known[request.session_id] = number
        conversation_of.append(number)
        content[number].update(request.hashes)
    met: Counter[int] = Counter()
    for hashes in content:
        met.update(hashes)
    many = max(COMMON_LEAST, COMMON_SHARE * len(content))
    common = {one for one, times in met.items() if times > many}
    belongs = list(range(len(content)))

    def head(number: int) -> int:
        while belongs[number] != number:
            belongs[number] = number = belongs[belongs[number]]
        return number

    first: dict[int, int] = {}
    for number, hashes in enumerate(content):
        for one in hashes:
            if met[one] > 1 and one not in common:
                other = head(first.setdefault(one, number))
                mine = head(number)
                belongs[max(mine, other)] = min(mine, other)
    return [head(number) for number in conversation_of], common


def _of_copy(hashes: tuple[int, ...], common: set[int], copy: int) -> tuple[int, ...]:
    """Hashes of a conversation's copy: new ones, but for content that is common."""
    if copy == 0:
        return hashes
    salt = copy * 0x9E3779B97F4A7C15
    return tuple(
        one if one in common else (one * _HASH_FACTOR + salt) & _HASH_BITS for one in hashes
    )


def _can_be_reseeded(trace: TraceSettings) -> bool:
    return trace.rate_per_s is not None or _spec_of(trace) is not None


def _reseeded(trace: TraceSettings, seed: int) -> Trace:
    if trace.rate_per_s is not None:
        return trace.open(seed)
    spec = _spec_of(trace)
    if spec is None:
        raise ConfigError(f"--traffic reseeded: {trace.path} cannot be made anew")
    made = synthetic_trace(spec.model_copy(update={"seed": seed}))
    return transformed(made, trace.operations)


def _spec_of(trace: TraceSettings) -> SyntheticSpec | None:
    """The spec beside a synthetic trace; None if there is none that gives this trace."""
    plain = trace.model_copy(update={"operations": ()}).open()
    beside = None if plain.path is None else _yaml_beside(plain.path)
    if beside is None:
        return None
    try:
        spec = load_settings(SyntheticSpec, beside)
        return spec if _first(synthetic_trace(spec)) == _first(plain) else None
    except KvcastError:
        return None


def _yaml_beside(path: Path) -> Path | None:
    beside = path.with_suffix(".yaml")
    return beside if beside != path and beside.is_file() else None


def _first(requests: Iterable[Request]) -> list[Request]:
    begun: Iterator[Request] = iter(requests)
    return list(islice(begun, CHECKED))
