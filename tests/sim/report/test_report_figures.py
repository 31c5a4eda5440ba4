import numpy as np
import polars as pl
import pytest

from sim.report import load_figures
from sim.report.contract import end_s
from sim.report.figures import MISSING, PICTURES, draw, figures
from sim.report.latency_figures import sketch
from sim.report.roofline_figure import step_work


def test_a_full_result_has_every_picture(result):
    assert figures(result).keys() == PICTURES.keys()


def test_every_picture_says_how_to_read_it(result):
    for name, picture in figures(result).items():
        assert picture.layout.title.text, name
        assert picture.layout.meta["caption"].endswith("."), name
        assert picture.layout.meta["finding"].endswith("."), name


@pytest.mark.parametrize("part", ["requests", "segments", "roofline"])
def test_pictures_that_need_an_absent_part_say_so(result, part):
    lacking = result.without(part)
    for name, picture in PICTURES.items():
        drawn = draw(lacking, name)
        assert (drawn == MISSING[part]) == (part in picture.needs)
    assert len(figures(lacking)) == sum(part not in p.needs for p in PICTURES.values())


def test_nothing_served_draws_arrivals_only(rejected):
    assert figures(rejected).keys() == {"outcomes"}


def test_no_request_at_all_draws_nothing(result, make_result):
    empty = make_result(20).__class__(
        result.summary, result.requests.clear(), result.segments.clear(), {}, result.roofline
    )
    assert figures(empty) == {}


def test_a_single_request_is_enough(make_result):
    drawn = figures(make_result(1, 1, load=0.001, tenants=("solo",)))
    assert {"ttft_cdf", "ttft_over_time", "phases_by_percentile", "kv_occupancy"} <= drawn.keys()


def test_sketch_is_small_and_ends_at_the_extremes():
    values = np.random.default_rng(1).lognormal(0, 1, 50_000)
    at, levels = sketch(values)
    assert len(at) <= 420
    assert (at[0], at[-1]) == (values.min(), values.max())
    assert at == pytest.approx(np.quantile(values, levels))


def test_cdf_marks_the_percentiles_of_the_summary(result):
    marks = draw(result, "ttft_cdf").data[1]
    served = result.requests["ttft_s"].drop_nulls().to_numpy()
    assert list(marks.x) == pytest.approx(np.quantile(served, [0.5, 0.95, 0.99]).tolist())


def test_slo_is_drawn_where_there_is_one(make_result):
    drawn = figures(make_result(500, slo={"ttft_s": 0.5}))
    assert drawn["ttft_cdf"].layout.shapes[0].x0 == 0.5
    assert drawn["ttft_over_time"].layout.shapes[0].y0 == 0.5
    assert not drawn["tpot_cdf"].layout.shapes


def test_phases_add_up_to_end_to_end(result):
    picture = draw(result, "phases_by_percentile")
    tops = np.sum([bar.y for bar in picture.data], axis=0)
    e2e = np.sort(result.requests["e2e_s"].drop_nulls().to_numpy())
    last = e2e[round(0.99 * len(e2e)) :]
    assert tops[-1] == pytest.approx(last.mean())
    assert (np.diff(tops) > 0).all()


def test_outcomes_count_every_request_once(result):
    picture = draw(result, "outcomes")
    drawn = {bar.name: int(sum(bar.customdata)) for bar in picture.data}
    counted = {
        name.replace("_", " "): count
        for name, count in result.requests.group_by("outcome").len().iter_rows()
    }
    assert drawn == counted


def test_queue_peak_is_the_deepest_moment(make_result):
    result = make_result(3_000, 2, load=1.1)
    waits = result.requests.filter(pl.col("outcome") != "rejected").select(
        "arrival_s", left_s=pl.coalesce("scheduled_s", "finish_s")
    )
    arrival, left = waits["arrival_s"].to_numpy(), waits["left_s"].to_numpy()
    depth = [((arrival <= at) & (at < left)).sum() for at in arrival]
    assert max(draw(result, "queue_depth").data[0].y) == max(depth) > 10


@pytest.mark.parametrize("replicas", [1, 4, 7, 1024])
def test_any_number_of_replicas(make_result, replicas):
    picture = draw(make_result(3 * replicas + 200, replicas), "kv_occupancy")
    if replicas <= load_figures.MOST_LINES:
        assert len(picture.data) == replicas
    else:
        (heat,) = picture.data
        assert np.asarray(heat.z).shape[0] == replicas
        assert np.asarray(heat.z).dtype == np.uint8
    assert picture.layout.height <= 560


def test_occupancy_averages_to_that_of_the_segments(result):
    lines = draw(result, "kv_occupancy").data
    segments, end = result.segments, end_s(result)
    held = segments.select(
        (pl.col("kv_blocks_used") * (pl.col("end_s") - pl.col("start_s"))).sum()
    ).item()
    blocks = result.summary["kv"]["blocks_per_replica"]
    expected = 100 * held / blocks / 4 / end
    mean = np.mean([np.mean(line.y) for line in lines])
    # the last bin is shorter than the others, and the run's tail is nearly empty
    assert mean == pytest.approx(expected, rel=0.02)


def test_step_work_sums_the_steps_of_a_segment(result):
    one = result.segments.filter(pl.col("prefill_sequences") == 1, pl.col("decodes") > 0).head(1)
    steps = 5
    long = one.with_columns(steps=pl.lit(steps))
    (chunk,), (decodes,) = one["prefill_tokens"], one["decodes"]
    flops = moved = 0.0
    for j in range(steps):
        f, m = result.roofline.work(
            decodes,
            one["decode_context_tokens"][0] + j * decodes,
            chunk,
            one["prefill_context_tokens"][0] + j * chunk,
            one["prefill_pairs"][0] + j * chunk**2,
            decodes + 1,
        )
        flops, moved = flops + f, moved + m
    work = step_work(long, result.roofline)
    assert work["kind"][0] == "mixed"
    assert work["flops"][0] == pytest.approx(flops)
    assert work["bytes"][0] == pytest.approx(moved)


def test_roofline_points_hold_all_step_time(result):
    picture = draw(result, "roofline")
    drawn = sum(sum(trace.marker.size) for trace in picture.data if trace.mode == "markers")
    spent = result.segments.select((pl.col("end_s") - pl.col("start_s")).sum()).item()
    assert drawn == pytest.approx(spent, rel=1e-5)
