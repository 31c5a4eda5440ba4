"""Prefill's and decode's shares of the step time."""

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from calibration.costs import LinearCost
from calibration.fitting.prediction import step_batch
from calibration.profiles import load_profile
from engine.batch import Batch
from engine.metrics import Rows
from sim.economics import split as splitting
from sim.economics.split import StepSplit
from sim.records import SEGMENT_COLUMNS
from sim.replay import Run
from sim.scenario import scenario_of

LINEAR = LinearCost(step_ps=5_000, prefill_token_ps=30, decode_ps=700, context_token_ps=1)
COLUMNS = {name: i for i, name in enumerate(SEGMENT_COLUMNS)}


def row(decodes: int, context: int, prefills: int, tokens: int, steps: int = 1) -> list[int]:
    """A segment as the simulator would write it, priced by LINEAR."""
    pairs = tokens * (tokens + 1) // 2
    batch = step_batch(decodes, context, prefills, tokens, tokens, pairs)
    first, growth, _ = LINEAR.progression(batch)
    values = dict.fromkeys(SEGMENT_COLUMNS, 0) | {
        "start": 10**15,
        "end": 10**15 + steps * first + growth * (steps * (steps - 1) // 2),
        "steps": steps,
        "decodes": decodes,
        "decode_context_tokens": context,
        "prefill_sequences": prefills,
        "prefill_tokens": tokens,
        "prefill_context_tokens": tokens,
        "prefill_pairs": pairs,
    }
    return list(values.values())


def taken(rows: list[list[int]], blocks: int = 1) -> StepSplit:
    split = StepSplit(LINEAR)
    for some in np.array_split(np.array(rows, dtype=np.int64), blocks):
        split.take(some)
    return split


DECODE = row(decodes=10, context=4_000, prefills=0, tokens=0, steps=20)
PREFILL = row(decodes=0, context=0, prefills=2, tokens=512)
MIXED = row(decodes=10, context=4_000, prefills=1, tokens=300)

NOISY = {
    "name": "noisy",
    "measured": True,
    "provenance": "made up for a test",
    "model": "llama-3.1-8b",
    "gpu": "h200",
    "cost": {"kind": "fitted", "step_s": 0.002, "token_s": 1e-5, "context_s": 1e-9},
    "noise": {"quantiles": [-0.2, -0.05, 0.0, 0.05, 0.2], "autocorrelation": 0.2},
}

rows = st.lists(
    st.one_of(
        st.builds(row, st.integers(1, 200), st.integers(1, 10**6), st.just(0), st.just(0)),
        st.builds(row, st.just(0), st.just(0), st.integers(1, 8), st.integers(8, 4096)),
        st.builds(
            row, st.integers(1, 200), st.integers(1, 10**6), st.integers(1, 8), st.integers(8, 4096)
        ),
    ),
    min_size=1,
    max_size=30,
)


def test_nothing_has_no_share():
    assert StepSplit(LINEAR).prefill_share is None


def test_steps_of_one_kind_are_of_that_kind():
    assert taken([DECODE]).prefill_share == 0
    assert taken([PREFILL]).prefill_share == 1
    duration = [one[COLUMNS["end"]] - one[COLUMNS["start"]] for one in (DECODE, PREFILL)]
    both = taken([DECODE, PREFILL])
    assert (both.decode_ps, both.prefill_ps) == tuple(duration)


def test_a_mixed_step_is_split_by_what_each_part_would_take_alone():
    alone_ps = 5_000 + 30 * 300 + 300, 5_000 + 700 * 10 + 4_000
    assert taken([MIXED]).prefill_share == pytest.approx(alone_ps[0] / sum(alone_ps), rel=1e-3)


class Quadratic:
    """A cost of attention alone: pairs and contexts, which grow along a segment."""

    def progression(self, batch: Batch) -> tuple[int, int, int]:
        return 7 * batch.decode_context_tokens + batch.prefill_pairs, 0, 1


def test_a_segment_of_many_mixed_steps_is_split_as_in_its_middle():
    """A prompt of 300 tokens a step beside 10 decodes: both attend to more from step to step."""
    chunk, steps = 300, 41
    long = row(decodes=10, context=9_000, prefills=1, tokens=chunk, steps=steps)
    whole = StepSplit(Quadratic())
    whole.take(np.array([long]))
    middle = (steps - 1) // 2
    prefill = long[COLUMNS["prefill_pairs"]] + middle * chunk * chunk
    decode = 7 * (9_000 + middle * 10)
    assert whole.prefill_share == pytest.approx(prefill / (prefill + decode), rel=1e-6)


def test_a_chunks_context_grows_along_its_segment():
    class Context:
        def progression(self, batch: Batch) -> tuple[int, int, int]:
            return batch.prefill_context_tokens + 1_000 * batch.decodes, 0, 1

    long = row(decodes=10, context=9_000, prefills=1, tokens=300, steps=41)
    whole = StepSplit(Context())
    whole.take(np.array([long]))
    prefill = 300 + 20 * 300
    assert whole.prefill_share == pytest.approx(prefill / (prefill + 10_000), rel=1e-6)


@given(rows, st.integers(1, 4))
def test_the_parts_are_the_whole_however_it_comes(rows, blocks):
    total = sum(one[COLUMNS["end"]] - one[COLUMNS["start"]] for one in rows)
    whole, pieces = taken(rows), taken(rows, blocks)
    assert whole.prefill_ps + whole.decode_ps == total
    assert (pieces.prefill_ps, pieces.decode_ps) == (whole.prefill_ps, whole.decode_ps)
    assert min(whole.prefill_ps, whole.decode_ps) >= 0


def served(monkeypatch: pytest.MonkeyPatch, groups: tuple[int, int], **scenario: object) -> Run:
    monkeypatch.setattr(splitting, "GROUPS", groups)
    run = Run(scenario_of(scenario))
    run.serve()
    return run


@pytest.mark.parametrize("trace", ["sample:chat", "sample:agentic"])
def test_pricing_alike_steps_together_is_as_good_as_pricing_each(monkeypatch, trace):
    settings = {"trace": {"path": trace, "operations": [{"limit": {"count": 600}}]}}
    together = served(monkeypatch, splitting.GROUPS, **settings)
    each = served(monkeypatch, (10**6, 1), **settings)
    assert each.split.prefill_share == pytest.approx(together.split.prefill_share, rel=0.02)
    assert together.split.prefill_share != each.split.prefill_share  # it was grouped
    busy_ps = together.records.busy_ps
    assert together.split.prefill_ps + together.split.decode_ps == busy_ps
    assert each.split.prefill_ps + each.split.decode_ps == busy_ps


def test_pricing_draws_nothing_from_the_runs_noise(monkeypatch, tmp_path):
    path = tmp_path / "noisy.yaml"
    path.write_text(yaml.safe_dump(NOISY), encoding="utf-8")
    scenario = scenario_of({"profile": str(path), "noise": True, "cluster": {"replicas": 2}})
    blocks: list[Rows] = []
    priced = Run(scenario)
    priced.serve(segments_to=blocks.append)
    again = StepSplit(load_profile(str(path)).cost_model())
    for rows in blocks:
        again.take(rows)
    assert again.prefill_ps == priced.split.prefill_ps
    monkeypatch.setattr(StepSplit, "take", lambda self, rows: None)
    unpriced = Run(scenario)
    unpriced.serve()
    assert priced.records.busy_ps == unpriced.records.busy_ps
    assert priced.summary()["latency"] == unpriced.summary()["latency"]
    assert priced.split.prefill_ps + priced.split.decode_ps == priced.records.busy_ps
    assert unpriced.split.prefill_share is None
