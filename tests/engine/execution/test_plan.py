"""A plan's vector says everything, always in the same place; it needs no torch."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.execution.plan import (
    SAMPLED,
    Counts,
    Plan,
    Sections,
    idle_decodes,
    idle_prefills,
    sections,
)

few = st.integers(0, 40)
flag = st.integers(0, 1)


@st.composite
def counts(draw) -> Counts:
    prefills = draw(st.integers(0, 6))
    chunks = [draw(st.integers(1, 50)) for _ in range(prefills)]
    return Counts(
        decodes=draw(few),
        padding=0,
        prefills=prefills,
        prefill_tokens=sum(chunks),
        max_chunk=max(chunks, default=0),
        max_context=draw(few),
        updates=draw(few),
        bucket=0,
        samples=draw(flag),
        nucleus=draw(flag),
        before=draw(few),
        after=draw(few),
        unsettled=draw(flag),
    )


@given(counts())
@settings(deadline=None)
def test_sections_are_aligned_and_do_not_overlap(found):
    parts = sections(found)
    for part, following in pairwise(parts):
        assert part.stop <= following.start < part.stop + 4
    assert all(part.start % 4 == 0 for part in parts), "16 bytes of 4-byte words"


@given(counts(), counts())
@settings(deadline=None)
def test_a_captured_step_finds_its_sections_whatever_else_the_plan_holds(one, other):
    one, other = (
        found._replace(decodes=24, prefills=0, prefill_tokens=0) for found in (one, other)
    )
    up_to = Sections._fields.index("starts") + 1
    assert sections(one)[:up_to] == sections(other)[:up_to]


@given(counts(), st.integers(0, 2**31))
@settings(deadline=None)
def test_a_vector_read_elsewhere_is_the_same_plan(found, seed):
    vector = np.random.default_rng(seed).integers(
        0, 2**31, sections(found).moves.stop, dtype=np.int32
    )
    vector[: len(found)] = found
    plan = Plan.read(vector)
    assert plan.counts == found
    before, after = plan.moves()
    assert (len(before), len(after)) == (found.before, found.after)
    told = [number for move in before + after for place in move for number in place]
    assert told == vector[plan.sections.moves].tolist()
    assert plan.device_words <= plan.sections.moves.start


@given(st.integers(1, 300))
@settings(deadline=None)
def test_idle_decodes_belong_to_nobody(decodes):
    plan = idle_decodes(decodes)
    vector, at = plan.vector, plan.sections
    assert Plan.read(vector).counts == plan.counts
    assert plan.counts.bucket == plan.counts.padding == decodes
    assert not vector[at.rows].any() and not vector[at.positions].any()
    assert (vector[at.context] == 1).all() and (vector[at.forced] == SAMPLED).all()


@given(st.integers(1, 300), st.integers(1, 100))
@settings(deadline=None)
def test_idle_prefills_are_whole_sequences_of_nobody(tokens, longest):
    plan = idle_prefills(tokens, longest)
    vector, at = plan.vector, plan.sections
    starts, context = vector[at.starts], vector[at.context]
    assert starts[0] == 0 and starts[-1] == tokens == plan.counts.prefill_tokens
    assert (np.diff(starts) == context).all() and context.max() == plan.counts.max_chunk <= longest
    assert (vector[at.last] == starts[1:] - 1).all()
    assert (vector[at.positions][vector[at.last]] == context - 1).all()
    assert not vector[at.rows].any() and not vector[at.token_rows].any()
