"""Intervals on a run's figures: what they hold, what is drawn for them, what stays as it was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from calibration.costs import LinearCost
from calibration.profiles import Profile, load_profile
from sim.folder import FILES, replay_to_folder
from sim.replay import replay, replicate, replication
from sim.scenario import Scenario, scenario_of
from sim.uncertainty import Draw, figures, replications
from tests.calibration.test_roofline import batch_of
from traces.errors import ConfigError
from traces.request import Request
from traces.settings import merged

PROFILE: dict[str, Any] = {
    "name": "made-up",
    "measured": True,
    "provenance": "made up for a test",
    "model": "llama-3.1-8b",
    "gpu": "h200",
    "cost": {
        "kind": "fitted",
        "step_s": {"value": 0.010, "low": 0.009, "high": 0.011},
        "decode_s": {"value": 0.002, "low": 0.001, "high": 0.003},
        "token_s": {"value": 1e-5, "low": 0.8e-5, "high": 1.2e-5},
        "correlation": {"terms": ["step_s", "decode_s"], "rows": [[1, -0.7], [-0.7, 1]]},
    },
    "noise": {"quantiles": [-0.2, -0.05, 0.0, 0.05, 0.2], "autocorrelation": 0.2},
}
"""Steps of 10 ms +- 10 %, and some scatter."""


@pytest.fixture(autouse=True)
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.chdir(tmp_path)
    return write("made-up.yaml")


def write(name: str, **changes: Any) -> Profile:
    Path(name).write_text(yaml.safe_dump(merged(PROFILE, changes)))
    return load_profile(name)


def scenario(**settings: Any) -> Scenario:
    defaults = {"profile": "made-up.yaml", "uncertainty": {"replications": 5}}
    return scenario_of(merged(defaults, settings))


def arrivals(count: int = 60, seed: int = 0, rate_per_s: float = 40.0) -> list[Request]:
    """Poisson arrivals of short chats."""
    random = np.random.default_rng(seed)
    times = np.cumsum(random.exponential(1 / rate_per_s, count)).tolist()
    outputs = random.integers(1, 6, count).tolist()
    return [Request(i, times[i], 20, outputs[i]) for i in range(count)]


def intervals(summary: Any) -> dict[str, list[float]]:
    return summary["uncertainty"]["intervals"]


# ---- what is reported


def test_the_run_itself_is_as_it_was_but_for_its_intervals():
    for noise in (False, True):
        with_them = replay(scenario(noise=noise), arrivals())
        without = replay(scenario(noise=noise, uncertainty={"replications": None}), arrivals())
        assert {**with_them.summary, "uncertainty": None} == {
            **without.summary,
            "uncertainty": None,
        }
        assert "uncertainty" not in without.summary
        assert with_them.requests.equals(without.requests)
        assert with_them.segments.equals(without.segments)


def test_files_differ_where_intervals_are_shown_and_nowhere_else(tmp_path: Path):
    settings = {"trace": {"operations": [{"limit": {"count": 30}}]}}
    replay_to_folder(scenario(**settings), tmp_path / "a")
    replay_to_folder(scenario(**settings), tmp_path / "b")
    replay_to_folder(scenario(uncertainty={"replications": None}, **settings), tmp_path / "c")
    read = {run: {name: (tmp_path / run / name).read_bytes() for name in FILES} for run in "abc"}
    assert read["a"] == read["b"]
    differ = {name for name in FILES if read["a"][name] != read["c"][name]}
    assert differ == {"scenario.yaml", "summary.json", "report.html"}
    summary, plain = (json.loads(read[run]["summary.json"]) for run in "ac")
    assert summary.pop("uncertainty")["replications"] == 5
    assert summary == plain


def test_every_figure_has_an_interval_and_no_setting_has():
    summary = replay(scenario(slo={"ttft_s": 0.05}), arrivals()).summary
    found = intervals(summary)
    assert list(found) == list(figures(summary))
    for name in ("latency.ttft_s.p99", "latency.itl_s.mean", "throughput.output_tokens_per_s"):
        assert found[name][0] < found[name][1], name
    for name in ("goodput.share", "kv.mean_occupancy", "utilization", "gpu_hours"):
        assert 0 <= found[name][0] < found[name][1], name
    assert found["goodput.share"][1] <= 1
    assert found["requests.finished"] == [60, 60]
    assert not {"goodput.slo.ttft_s", "replicas", "gpus", "kv.block_tokens", "segments"} & set(
        found
    )
    assert summary["uncertainty"]["drawn"] == ["fitted coefficients", "step noise"]
    json.dumps(summary, allow_nan=False)


def test_a_figure_that_not_every_replication_has_is_left_without():
    alone = [Request(0, 0.0, 20, 1)]
    settings = scenario(uncertainty={"noise": False})
    whole = replay(settings, alone).summary
    # a client as patient as the point estimate asks for, and not all draws
    hasty = scenario(cluster={"request_timeout_s": whole["duration_s"]})
    summary = replay(hasty, alone).summary
    assert summary["requests"]["finished"] == 1
    assert intervals(summary)["requests.finished"][0] == 0
    assert intervals(summary)["latency.ttft_s.p50"] is None
    assert intervals(whole)["latency.ttft_s.p50"] is not None


def test_level_and_number_of_replications_are_as_stated():
    narrow, wide = (
        intervals(replay(scenario(uncertainty={"level": level}), arrivals()).summary)
        for level in (0.5, 0.95)
    )
    for name, (low, high) in narrow.items():
        assert wide[name][0] <= low <= high <= wide[name][1], name
    summary = replay(scenario(uncertainty={"replications": 7}), arrivals()).summary
    assert summary["uncertainty"]["replications"] == 7


def test_jobs_and_repetition_change_nothing():
    told: list[int] = []
    one = replay(scenario(), arrivals(), replicated=told.append).summary
    assert told == [1, 2, 3, 4, 5]
    assert replay(scenario(), iter(arrivals()), jobs=2).summary == one
    assert replay(scenario(seed=1), arrivals()).summary != one


# ---- what is drawn


def draws(settings: Scenario, profile: Profile) -> list[Draw]:
    return replications(settings, profile, profile.cost_model(), profiled=True)


def test_replications_of_two_policies_draw_alike(profile: Profile):
    one = draws(scenario(cluster={"router": "random"}), profile)
    other = draws(scenario(preset="static", cluster={"replicas": 3}), profile)
    assert [d.profile(profile) for d in one] == [d.profile(profile) for d in other]
    assert len({d.profile(profile).cost.step_s.value for d in one}) == len(one)
    step = batch_of(3, 60, [])
    streams = {
        (number, replica, which): tuple(
            cost.progression(step)[0] for _ in range(50)
        )
        for which, chosen in enumerate((one, other))
        for number, draw in enumerate(chosen)
        for replica in range(2)
        for cost in [draw.noisy(profile.cost_model(), profile, replica)]
    }  # fmt: skip
    for (number, replica, _), stream in streams.items():
        assert stream == streams[number, replica, 0]
    assert len(set(streams.values())) == 10


def test_what_is_drawn_follows_from_seed_and_number_alone(profile: Profile):
    few, many = (draws(scenario(uncertainty={"replications": n}), profile) for n in (5, 9))
    assert many[:5] == few
    other = draws(scenario(seed=3), profile)
    assert [d.profile(profile) for d in few] != [d.profile(profile) for d in other]


def test_what_is_drawn_is_what_steps_cost(profile: Profile):
    prompt = batch_of(0, 0, [(500, 0)])
    point = profile.cost_model().progression(prompt)[0]
    drawn = [
        d.profile(profile).cost_model().progression(prompt)[0] for d in draws(scenario(), profile)
    ]
    assert len({point, *drawn}) == 6
    assert [
        d.profile(profile).model_copy(update={"cost": profile.cost})
        for d in draws(scenario(), profile)
    ] == [profile] * 5


def test_pairs_show_a_policy_that_single_intervals_hide():
    """The better of two is better in every replication, although their intervals overlap."""
    plain, batched = (
        scenario(scheduler={"max_num_seqs": n}, uncertainty={"noise": False}) for n in (5, 6)
    )
    requests = arrivals(rate_per_s=60.0)
    ttft = "latency.ttft_s.mean"
    pairs = [[found[ttft] for found in replicate(one, requests)] for one in (plain, batched)]
    assert all(slow > fast for slow, fast in zip(*pairs, strict=True))
    assert min(pairs[0]) < max(pairs[1])


def test_noise_alone_scatters_steps_as_measured_and_the_same_every_time():
    settings = scenario(noise=True, uncertainty={"replications": None})
    requests = arrivals(400, rate_per_s=10.0)
    noisy, again = (replay(settings, requests) for _ in range(2))
    still = replay(scenario(uncertainty={"replications": None}), requests)
    assert noisy.segments.equals(again.segments)
    assert noisy.summary["segments"] == noisy.summary["steps"]
    assert noisy.summary["latency"]["itl_s"]["max"] > still.summary["latency"]["itl_s"]["max"]
    mean = noisy.summary["latency"]["itl_s"]["mean"]
    assert mean == pytest.approx(still.summary["latency"]["itl_s"]["mean"], rel=0.02)


def test_noise_is_drawn_if_the_profile_has_any(profile: Profile):
    quiet = write("quiet.yaml", noise=None)
    assert not any(draw.noise for draw in draws(scenario(), quiet))
    assert not any(draw.noise for draw in draws(scenario(uncertainty={"noise": False}), profile))
    assert draws(scenario(), quiet)[0].in_words == ["fitted coefficients"]
    with pytest.raises(ConfigError, match="noise: profile made-up has no measured scatter"):
        replay(scenario(noise=True, profile="quiet.yaml"), arrivals(1))


# ---- what has no intervals


def test_an_estimate_has_no_intervals_of_its_own():
    with pytest.raises(ConfigError) as said:
        replay(scenario(profile="analytic:h200/llama-3.1-8b"))
    assert "analytic:h200/llama-3.1-8b" in str(said.value)
    assert "no intervals" in str(said.value)
    assert "uncertainty.cost_share" in str(said.value)
    assert "\n" not in str(said.value)


def test_a_cost_model_of_ones_own_has_none_either():
    own = LinearCost(10_000_000_000, 0, 0, 0)
    with pytest.raises(ConfigError, match="uncertainty: a cost model that is passed in"):
        replay(scenario(), arrivals(), cost=own)
    assert replay(scenario(uncertainty={"cost_share": 0.1}), arrivals(), cost=own)

    class Unknown:
        def progression(self, batch: Any) -> tuple[int, int, int]:
            return 1, 0, 1

    with pytest.raises(ConfigError, match=r"uncertainty\.cost_share: step times of a Unknown"):
        replay(scenario(uncertainty={"cost_share": 0.1}), arrivals(), cost=Unknown())


def test_an_assumed_share_is_what_step_times_vary_by():
    settings = scenario(
        profile="analytic:h200/llama-3.1-8b",
        uncertainty={"replications": 200, "cost_share": 0.25},
    )
    summary = replay(settings, [Request(0, 0.0, 50, 2)]).summary
    point, (low, high) = (
        summary["latency"]["itl_s"]["mean"],
        intervals(summary)["latency.itl_s.mean"],
    )
    assert low == pytest.approx(point / 1.25, rel=0.06)
    assert high == pytest.approx(point * 1.25, rel=0.06)
    assert summary["uncertainty"]["drawn"] == ["all step times, assumed known within 25 %"]


# ---- whether intervals hold


CASES = 100


@pytest.mark.parametrize("noise", [False, True])
def test_an_interval_holds_the_truth_as_often_as_it_says(profile: Profile, noise: bool):
    """The truth of a case is one more draw from what the profile says is possible."""
    held = dict.fromkeys(
        ("latency.ttft_s.mean", "latency.ttft_s.p99", "latency.queue_s.mean", "utilization"), 0
    )
    for case in range(CASES):
        requests = arrivals(25, seed=case)
        settings = scenario(
            seed=case,
            uncertainty={"replications": 20, "noise": noise},
            scheduler={"max_num_seqs": 1, "async_scheduling": False},  # a single server
        )
        found = intervals(
            replay(settings, requests, keep_requests=False, keep_segments=False).summary
        )
        truth = replication(
            settings, profile, requests, None, Draw(case, 10**6, coefficients=True, noise=noise)
        )
        for name in held:
            held[name] += found[name][0] <= truth[name] <= found[name][1]
    least, most = stats.binom.interval(0.999, CASES, 0.95)
    assert {name: count for name, count in held.items() if not least <= count <= most} == {}


# ---- the measured range


def test_a_run_beyond_what_was_measured_says_how_far_once():
    write("small.yaml", validity={"max_tokens": 30, "max_sequences": 1, "max_context_tokens": 50})
    settings = scenario(profile="small.yaml", uncertainty={"replications": None})
    inside = replay(settings, [Request(0, 0.0, 30, 20)]).summary["warnings"]
    assert inside == []
    chats = [Request(0, 0.0, 25, 51), Request(1, 0.0, 20, 2)]
    (warning,) = replay(settings, chats).summary["warnings"]
    assert "30 tokens in a step; asked for 45 (1.50 times)" in warning
    assert "1 sequences in a step; asked for 2 (2.00 times)" in warning
    assert "50 tokens of context; asked for 75 (1.50 times)" in warning
