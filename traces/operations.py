"""What can be done to a trace: each operation takes requests and yields requests.

All stream, keep arrival order, keep sessions and shared prefixes meaningful, and number the
requests from 0 again, so that they compose. Their arguments are checked in `traces.pipeline`,
which states them as settings.
"""

import random
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from traces.request import Request

_HASH_BITS = (1 << 63) - 1
_HASH_FACTOR = 0x2545F4914F6CDD1D  # odd: multiplying by it modulo 2**63 loses nothing
_SORTED_AT_ONCE = 1 << 16

_HASHES = Request._fields.index("hashes")
_SESSION = Request._fields.index("session_id")


def window(
    requests: Iterable[Request], start_s: float = 0.0, end_s: float | None = None
) -> Iterator[Request]:
    """Requests that arrive in [start_s, end_s), counted from start_s.

    A session under way at the start begins with its first turn inside. Memory grows with the
    sessions in the window.
    """
    first_turn: dict[int, int] = {}
    request_id = 0
    for request in requests:
        if request.arrival_s < start_s:
            continue
        if end_s is not None and request.arrival_s >= end_s:
            return
        turn, think_s = request.turn, request.think_s
        if request.session_id >= 0:
            turn -= first_turn.setdefault(request.session_id, turn)
            think_s = think_s if turn else 0.0
        yield request._replace(
            request_id=request_id,
            arrival_s=request.arrival_s - start_s,
            turn=turn,
            think_s=think_s,
        )
        request_id += 1


def thin(requests: Iterable[Request], factor: float, seed: int = 0) -> Iterator[Request]:
    """A random share `factor` of the sessions, each whole; a request without session is its own.

    The rate falls by the factor and a Poisson process of sessions stays one. The same seed makes
    the same choice: what a smaller factor keeps, a larger one keeps too. Thinning twice therefore
    takes two seeds. Content shared between sessions is met less often, as it would be in reality.
    """
    alone = random.Random(seed)
    request_id = 0
    for request in requests:
        if request.session_id < 0:
            chance = alone.random()
        else:
            chance = _mixed(request.session_id, seed) / 2**64
        if chance < factor:
            yield request._replace(request_id=request_id)
            request_id += 1


def tile(
    requests: Iterable[Request],
    copies: int,
    spread_s: float = 60.0,
    seed: int = 0,
    share_content: bool = False,
) -> Iterator[Request]:
    """`copies` of the trace on top of each other: the rate times `copies`, its curve kept.

    Copy 0 keeps its times; every other is late as a whole by a time of its own, drawn evenly from
    [0, spread_s): long against the gaps between requests, so that copies do not arrive in step,
    and short against the changes of the rate, which it blurs. Copies are different sessions; they
    share no content unless `share_content`. Memory holds the requests of about `spread_s`.
    """
    if copies == 1:
        yield from _numbered(requests)
        return
    random_numbers = np.random.default_rng(seed)
    delays_s = np.concatenate(([0.0], np.sort(random_numbers.uniform(0, spread_s, copies - 1))))
    salts = [_mixed(copy, seed) & _HASH_BITS for copy in range(copies)]
    make = tuple.__new__
    merged = _merged(iter(requests), delays_s)
    for request_id, (arrival_s, original, copy) in enumerate(merged):
        hashes, session_id = original.hashes, original.session_id
        if hashes and not share_content:
            salt = salts[copy]
            hashes = tuple([(h * _HASH_FACTOR + salt) & _HASH_BITS for h in hashes])
        if session_id >= 0:
            session_id = session_id * copies + copy
        # the fields in order; several times as fast as Request._replace
        yield make(
            Request,
            (
                request_id,
                arrival_s,
                *original[2:_HASHES],
                hashes,
                *original[_HASHES + 1 : _SESSION],
                session_id,
                *original[_SESSION + 1 :],
            ),
        )


def compress_time(requests: Iterable[Request], factor: float) -> Iterator[Request]:
    """The same requests `factor` times as fast: arrivals and think times divided by it.

    The rate is multiplied and the shape of the arrival process kept; so it is harsher than `tile`,
    which smooths bursts as more users would.
    """
    for request_id, request in enumerate(requests):
        yield request._replace(
            request_id=request_id,
            arrival_s=request.arrival_s / factor,
            think_s=request.think_s / factor,
        )


def scale_lengths(
    requests: Iterable[Request], prompt: float = 1.0, output: float = 1.0
) -> Iterator[Request]:
    """The same requests with prompts and answers longer or shorter: tokens times the factors.

    Rounded, at least 1. What a request shares stays: tokens are added at its end, as content of its
    own, or taken from there.
    """
    for request_id, request in enumerate(requests):
        prompt_tokens = max(1, round(request.prompt_tokens * prompt))
        output_tokens = max(1, round(request.output_tokens * output))
        hashed_tokens = min(request.hashed_tokens, prompt_tokens + output_tokens)
        hashes = request.hashes
        if hashed_tokens < request.hashed_tokens:
            hashes = hashes[: -(-hashed_tokens // request.hash_tokens)]
        yield request._replace(
            request_id=request_id,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            hashes=hashes,
            hashed_tokens=hashed_tokens,
        )


def limit(requests: Iterable[Request], count: int) -> Iterator[Request]:
    """The first `count` requests."""
    return _numbered(islice(requests, count))


def tag(
    requests: Iterable[Request],
    tenant: str | None = None,
    priority: int | None = None,
    slo_class: str | None = None,
) -> Iterator[Request]:
    """The same requests with tenant, priority or SLO class set; None leaves a field as it is."""
    given = {"tenant": tenant, "priority": priority, "slo_class": slo_class}
    fields = {name: value for name, value in given.items() if value is not None}
    for request_id, request in enumerate(requests):
        yield request._replace(request_id=request_id, **fields)


def _numbered(requests: Iterable[Request]) -> Iterator[Request]:
    for request_id, request in enumerate(requests):
        yield request._replace(request_id=request_id)


def _merged(
    requests: Iterator[Request], delays_s: "np.ndarray[tuple[int], np.dtype[np.float64]]"
) -> Iterator[tuple[float, Request, int]]:
    """(arrival, request, copy) for every request and delay, in order of arrival.

    Works through the trace in stretches: what arrives up to a stretch's end can be handed out,
    since whatever follows arrives later still; the rest waits for the next stretch.
    """
    copies = len(delays_s)
    held: list[Request] = []
    times_s = np.empty(0)
    numbers = np.empty(0, dtype=np.int64)  # position in `held` x copies + copy
    while True:
        stretch = list(islice(requests, max(_SORTED_AT_ONCE, len(times_s)) // copies + 1))
        arrivals_s = np.array([request.arrival_s for request in stretch])
        new_numbers = np.arange(len(stretch) * copies) + len(held) * copies
        times_s = np.concatenate((times_s, np.add.outer(arrivals_s, delays_s).ravel()))
        numbers = np.concatenate((numbers, new_numbers))
        held += stretch
        order = np.argsort(times_s, kind="stable")
        times_s, numbers = times_s[order], numbers[order]
        ready = len(times_s)
        if stretch:
            ready = int(np.searchsorted(times_s, stretch[-1].arrival_s, side="right"))
        positions, copy_numbers = np.divmod(numbers[:ready], copies)
        for time_s, position, copy in zip(
            times_s[:ready].tolist(), positions.tolist(), copy_numbers.tolist(), strict=True
        ):
            yield time_s, held[position], copy
        if not stretch:
            return
        times_s, numbers = times_s[ready:], numbers[ready:]
        done = int(numbers.min()) // copies if len(numbers) else len(held)
        del held[:done]
        numbers -= done * copies


def _mixed(number: int, seed: int) -> int:
    """64 well-mixed bits of a number and a seed (SplitMix64)."""
    mask = (1 << 64) - 1
    z = (number + (seed + 1) * 0x9E3779B97F4A7C15) & mask
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = ((z ^ (z >> shift)) * factor) & mask
    return z ^ (z >> 31)
