"""One request of a trace."""

from typing import NamedTuple


class Request(NamedTuple):
    """What a client asked for and when; immutable, and cheap enough to stream by the million.

    `hashes` describes the content of the first `hashed_tokens` tokens of prompt + output, one hash
    for each `hash_tokens` tokens (the last may be partial). Hashes are *chained*: two requests
    with the same hash at the same position agree on every token up to that hash's end (for a
    partial hash, up to the shorter of the two). Readers guarantee it. Tokens past `hashed_tokens`
    are unlike any other request's. Without hashes a request shares nothing.

    A trace is requests in order of `arrival_s`, numbered from 0, each with at least one prompt and
    one output token. The turns of a session come in order. A hash is an integer in [0, 2**63).
    """

    request_id: int
    """Position in the trace, from 0."""
    arrival_s: float
    """Seconds since the trace began; ignored for `turn > 0` of a closed-loop session."""
    prompt_tokens: int
    """Tokens the client sent, everything before the answer included; at least 1."""
    output_tokens: int
    """Tokens of the answer; at least 1."""
    hashes: tuple[int, ...] = ()
    """Chained content hashes, ceil(hashed_tokens / hash_tokens) of them."""
    hash_tokens: int = 0
    """Tokens a hash stands for; 0 without hashes."""
    hashed_tokens: int = 0
    """Tokens the hashes cover, from the prompt's first on; at most prompt + output."""
    session_id: int = -1
    """Requests of one conversation share it; -1: none."""
    turn: int = 0
    """0 for the first request of a session."""
    think_s: float = 0.0
    """Closed loop only: pause between the answer to the turn before and this request."""
    tenant: str = ""
    """Whose request it is; free text."""
    priority: int = 0
    """Lower is served first, as in vLLM."""
    slo_class: str = ""
    """Names the latency targets that apply; free text."""
