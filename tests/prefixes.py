"""Traces whose prompts share beginnings, drawn by hypothesis."""

from hypothesis import strategies as st

from traces.request import Request

_BITS = (1 << 63) - 1


def chained(ids: tuple[int, ...]) -> tuple[int, ...]:
    chain: list[int] = []
    parent = -1
    for one in ids:
        parent = hash((parent, one)) & _BITS
        chain.append(parent)
    return tuple(chain)


@st.composite
def prefix_traces(
    draw: st.DrawFn, hash_tokens: int, *, whole: bool = True, answers: bool = False
) -> list[Request]:
    """Requests that begin like earlier ones and go on in few ways.

    whole: prompts may end with a hash; else none does. answers: hashes may go beyond the prompt.
    """
    requests: list[Request] = []
    seen: list[tuple[int, ...]] = [()]
    for number in range(draw(st.integers(2, 20))):
        base = draw(st.sampled_from(seen))
        kept = draw(st.integers(0, len(base)))
        more = draw(st.lists(st.integers(0, 2), min_size=0 if kept else 1, max_size=4))
        ids = base[:kept] + tuple(more)
        seen.append(ids)
        known = len(ids) * hash_tokens - draw(st.integers(0 if whole else 1, hash_tokens - 1))
        answer = draw(st.integers(0, known - 1)) if answers else 0
        requests.append(
            Request(
                number,
                float(number),
                known - answer,
                answer + draw(st.integers(1, 3)),
                chained(ids),
                hash_tokens,
                known,
            )
        )
    return requests
