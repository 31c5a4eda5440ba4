from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from calibration.fitted import fitted_cost
from calibration.fitting.prediction import step_batch
from calibration.measuring.campaign import (
    CHOSEN,
    FILLING,
    LEAST_STEPS,
    PROBE,
    SERVING_SHARE,
    TEST,
    VISIT_SHARE,
    Campaign,
    Visit,
)
from calibration.measuring.design import Limits
from calibration.measuring.measure import Step
from tests.calibration.engines import PS, TRUTH

LIMITS = Limits(
    max_sequences=64, max_tokens=1024, max_context_tokens=4096, pool_blocks=1999, block_tokens=16
)
GRAPHS = replace(LIMITS, graph_sizes=(1, 2, 4, *range(8, 65, 8)))


class Pretended:
    """Visits that take what a law says."""

    def __init__(self, budget_s=60.0, seed=0, limits=LIMITS, slower=1.0, visits=()):
        self.limits = limits
        self.slower = slower
        self.campaign = Campaign(limits, budget_s, seed, visits)
        self.cost = fitted_cost(TRUTH, async_scheduling=False)
        self.elapsed_s = visits[-1].ended_s if visits else 0.0
        self.promised_s: list[float] = []

    def visit(self, task):
        features = task.point.features(self.limits)
        step_s = self.slower * self.cost.progression(step_batch(*features[:6]))[0] / PS
        steps = tuple(Step(*features, time_s=step_s, device_s=step_s) for _ in range(task.steps))
        began_s = self.elapsed_s
        self.elapsed_s += step_s * (task.steps + 1) + 1e-5 * task.point.prompt_tokens()
        self.promised_s.append(task.cost_s)
        self.campaign.add(Visit(task.stage, task.point, steps, began_s, self.elapsed_s))

    def run(self, most=10**9):
        while most and (task := self.campaign.next(self.elapsed_s)) is not None:
            self.visit(task)
            most -= 1
        return self

    @property
    def visits(self):
        return self.campaign.visits


@pytest.mark.parametrize(("budget_s", "slower"), [(10, 0.4), (10, 2.0), (60, 1.0), (120, 10.0)])
def test_the_budget_is_kept_and_used(budget_s, slower):
    done = Pretended(budget_s, slower=slower).run()
    designed_s = (1 - SERVING_SHARE) * budget_s
    assert 0.9 * designed_s < done.elapsed_s < 1.02 * designed_s
    longest = max(visit.ended_s - visit.began_s for visit in done.visits)
    assert longest < 1.5 * VISIT_SHARE * budget_s


def test_first_probes_then_a_spread_then_repeats_and_chosen_ones():
    done = Pretended().run()
    stages = [visit.stage for visit in done.visits]
    probes = stages.index(FILLING)
    assert set(stages[:probes]) == {PROBE}
    new: dict[str, int] = {}
    seen = set()
    for visit in done.visits:
        if visit.point not in seen:
            new[visit.stage] = new.get(visit.stage, 0) + 1
        seen.add(visit.point)
    assert set(new) == {PROBE, FILLING, CHOSEN, TEST}
    assert new[TEST] / (new[FILLING] + new[CHOSEN] + new[TEST]) == pytest.approx(0.25, abs=0.05)


def test_repeats_are_never_back_to_back():
    points = [visit.point for visit in Pretended().run().visits]
    assert len(set(points)) < len(points) / 1.5
    assert all(one != other for one, other in pairwise(points))


def test_a_point_has_one_stage_for_good():
    stages: dict[object, set[str]] = {}
    for visit in Pretended(90.0).run().visits:
        stages.setdefault(visit.point, set()).add(visit.stage)
    assert all(len(one) == 1 for one in stages.values())


@pytest.mark.parametrize("cut", [1, 5, 12, 13, 14, 20, 40, 60, 90])
def test_it_goes_on_as_if_nothing_had_been(cut):
    whole = Pretended(20.0).run()
    begun = Pretended(20.0).run(most=cut)
    resumed = Pretended(20.0, visits=tuple(begun.visits)).run()
    assert resumed.visits == whole.visits


def test_another_seed_is_another_order():
    one, other = Pretended(seed=1).run(), Pretended(seed=2).run()
    assert [v.point for v in one.visits] != [v.point for v in other.visits]


def test_costs_are_foretold():
    done = Pretended(90.0).run()
    took = np.array([visit.ended_s - visit.began_s for visit in done.visits])
    later = slice(40, None)
    assert np.median(np.abs(np.array(done.promised_s)[later] / took[later] - 1)) < 0.1


def test_all_edges_of_graphs_are_measured_if_there_is_time():
    done = Pretended(60.0, limits=GRAPHS).run()
    alone = {visit.point.decodes for visit in done.visits if not visit.point.prefills}
    assert alone >= {1, 2, 3, 4, 5, *range(8, 65, 8), *range(9, 64, 8)}


def test_a_budget_that_is_too_short_says_what_would_do():
    short = Pretended(0.5).run()
    lacking = short.campaign.lacking()
    assert lacking is not None
    assert "contexts" in lacking.what or lacking.what in ("prefill tokens", "decodes")
    assert lacking.budget_s > 0.5
    enough = Pretended(lacking.budget_s).run()
    assert enough.campaign.lacking() is None


def test_reach_is_what_was_measured():
    done = Pretended().run()
    reach = done.campaign.reach()
    assert reach.max_sequences == max(
        visit.point.decodes + visit.point.prefills for visit in done.visits
    )
    assert reach.max_tokens <= LIMITS.max_tokens
    assert reach.max_context_tokens <= LIMITS.max_context_tokens


def test_the_first_task_needs_to_know_nothing():
    task = Campaign(LIMITS, 60.0, 0).next(0.0)
    assert task is not None and task.stage == PROBE and task.steps == LEAST_STEPS
