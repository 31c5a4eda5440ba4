"""Random requests that keep the contract."""

from hypothesis import strategies as st

from traces.request import Request
from traces.rows import blocks_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
INT64 = st.integers(-(2**63), 2**63 - 1)


@st.composite
def request_lists(draw: st.DrawFn, *, max_size: int = 12) -> list[Request]:
    """Requests in arrival order, numbered from 0, with every field in use."""
    gaps_s = draw(st.lists(st.floats(0, 1e6), min_size=1, max_size=max_size))
    requests: list[Request] = []
    arrival_s = 0.0
    next_turn: dict[int, int] = {}
    for request_id, gap_s in enumerate(gaps_s):
        arrival_s += gap_s
        prompt_tokens = draw(st.integers(1, 10_000))
        output_tokens = draw(st.integers(1, 10_000))
        hash_tokens = hashed_tokens = 0
        hashes: tuple[int, ...] = ()
        if draw(st.booleans()):
            hash_tokens = draw(st.integers(1, 1024))
            hashed_tokens = draw(st.integers(0, min(20 * hash_tokens, prompt_tokens)))
            blocks = blocks_of(hashed_tokens, hash_tokens)
            hashes = tuple(
                draw(st.lists(st.integers(0, 2**63 - 1), min_size=blocks, max_size=blocks))
            )
        session_id = draw(st.integers(-1, 3) | st.integers(0, 2**63 - 1))
        turn = next_turn.get(session_id, draw(st.integers(0, 2**62)))
        next_turn[session_id] = turn + draw(st.integers(1, 3))
        requests.append(
            Request(
                request_id,
                arrival_s,
                prompt_tokens,
                output_tokens,
                hashes,
                hash_tokens,
                hashed_tokens,
                session_id,
                turn,
                draw(st.floats(0, 1e9)),
                draw(TEXT),
                draw(INT64),
                draw(TEXT),
            )
        )
    return requests


def plain(arrivals_s: list[float], **fields: object) -> list[Request]:
    """Requests of 10 prompt and 5 output tokens at these times."""
    made = [Request(i, arrival_s, 10, 5) for i, arrival_s in enumerate(arrivals_s)]
    return [request._replace(**fields) for request in made]
