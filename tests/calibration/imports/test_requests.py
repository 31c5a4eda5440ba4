"""Request logs of real runs, in the forms they come in, and what is refused of them."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from calibration.imports.requests import REQUESTS, TIMELINE, ServedRun, read_run, to_requests
from engine.config import CacheSettings, SchedulerSettings
from sim.folder import replay_to_folder
from sim.scenario import scenario_of
from traces.errors import ConfigError, TraceError
from traces.rows import check_request
from traces.settings import merged


@pytest.fixture(scope="module")
def recorded(shared: Path) -> Path:
    return shared / "ground-truth" / "rtx4090-llama-3.1-8b-vllm"


@pytest.fixture(scope="module")
def run(recorded: Path) -> ServedRun:
    return read_run(recorded)


def csv(folder: Path, *lines: str) -> Path:
    path = folder / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def jsonl(folder: Path, *rows: dict[str, Any], name: str = "requests.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---- a recorded run of vLLM


def test_a_recorded_run_field_by_field(run):
    assert {name: str(kind) for name, kind in run.requests.schema.items()} == REQUESTS
    first = run.requests.row(0, named=True)
    assert first["arrival_s"] == 0.0469268
    assert first["queued_s"] == pytest.approx(0.0469268 + 1.84464e-3)
    assert first["scheduled_s"] == pytest.approx(first["queued_s"] + 0.020579e-3)
    assert first["first_token_s"] == pytest.approx(first["queued_s"] + 689.435e-3)
    assert first["finish_s"] == pytest.approx(first["queued_s"] + 17.5703)
    assert (first["prompt_tokens"], first["output_tokens"]) == (2358, 531)
    assert first["cached_tokens"] is None
    assert run.hash_tokens == 16
    assert run.prefix_hashes is not None
    assert run.prefix_hashes[0] == tuple(range(1, 148))
    assert run.requests["arrival_s"].is_sorted()


def test_its_settings_are_a_scenarios(run):
    assert run.settings["memory"] == {"num_blocks": 2588, "memory_share": 0.9}
    assert run.settings["cache"] == {"block_tokens": 16, "prefix_caching": True}
    assert run.settings["scheduler"] == {
        "max_num_seqs": 256,
        "max_num_batched_tokens": 2048,
        "max_model_len": 32768,
        "order": "fcfs",
        "chunked_prefill": True,
        "long_prefill_token_threshold": 0,
        "reserve_full_sequence": True,
        "async_scheduling": True,
    }
    scenario_of(run.settings)
    assert run.about["device"] == "NVIDIA GeForce RTX 4090"
    assert run.about["tensor_parallel_size"] == 1


def test_its_timeline(run):
    assert run.timeline is not None
    assert tuple(run.timeline.columns) == tuple(TIMELINE)
    assert run.timeline.row(0) == pytest.approx((1.0, 5.0, 2.0, 0.1322, 3392.0, 2.0))


def test_as_a_trace_requests_come_as_the_scheduler_got_them(run):
    last_s = 0.0
    requests = to_requests(run)
    queued_s = dict(run.requests.select("request_id", "queued_s").iter_rows())
    for request in requests:
        check_request(request, last_s)
        assert request.arrival_s == queued_s[request.request_id]
        last_s = request.arrival_s
    assert sorted(request.request_id for request in requests) == list(range(300))
    assert requests[0].hashed_tokens == 147 * 16


# ---- what the recorder of that run writes (github.com/casys-kaist/LLMServingSim, bench, MIT)

RECORDED = [
    {
        "request_id": "bench-0",
        "input_toks": 2358,
        "output_toks": 531,
        "arrival_time": 1787267980.0827403,
        "queued_ts": 27536.660701067,
        "scheduled_ts": 27536.660721646,
        "first_token_ts": 27537.350135653,
        "last_token_ts": 27554.231018618,
    },
    {
        "request_id": "bench-1",
        "input_toks": 1034,
        "output_toks": 769,
        "arrival_time": 1787267980.3478317,
        "queued_ts": 27537.047603549,
        "scheduled_ts": 27537.047613531,
        "first_token_ts": 27537.350135653,
        "last_token_ts": 27562.279894586,
    },
]


def test_clocks_of_server_and_engine_are_aligned(tmp_path):
    it = read_run(jsonl(tmp_path, *RECORDED))
    delays = it.requests["queued_s"] - it.requests["arrival_s"]
    assert delays.min() == pytest.approx(0, abs=1e-6)
    assert it.requests["arrival_s"].to_list() == pytest.approx([0, 0.2650914], abs=1e-6)
    ttft = it.requests["first_token_s"] - it.requests["queued_s"]
    assert ttft.to_list() == pytest.approx([0.689435, 0.302532], abs=1e-6)
    assert "another clock" in it.about["clock"]


def test_both_forms_of_the_recorded_run_agree(tmp_path, run):
    two = read_run(jsonl(tmp_path, *RECORDED)).requests
    for start, end in (("queued_s", "first_token_s"), ("queued_s", "finish_s")):
        here = (two[end] - two[start]).to_list()
        there = (run.requests[end] - run.requests[start]).to_list()[:2]
        assert here == pytest.approx(there, rel=1e-5)


def test_a_folder_holds_one_log(tmp_path):
    jsonl(tmp_path, *RECORDED)
    assert len(read_run(tmp_path).requests) == 2
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match=r"holds no request log; expected one of per_request.csv"):
        read_run(tmp_path / "other")


# ---- meta.json of other runs


def meta(folder: Path, **content: Any) -> ServedRun:
    (folder / "meta.json").write_text(json.dumps(content))
    return read_run(jsonl(folder, *RECORDED))


def test_an_older_meta_says_less(tmp_path):
    kwargs = {"tensor_parallel_size": 2, "max_num_seqs": 128, "max_model_len": None}
    it = meta(tmp_path, model="Qwen/Qwen3-32B", engine_kwargs=kwargs | {"kv_cache_dtype": "fp8"})
    assert it.settings == {"scheduler": {"max_num_seqs": 128}}
    assert it.about["tensor_parallel_size"] == 2
    assert it.about["kv_cache_dtype"] == "fp8"


def test_what_was_resolved_is_found_where_vllm_keeps_it(tmp_path):
    resolved = {
        "model_config": {"max_model_len": 4096},
        "scheduler_config": {"policy": "priority", "async_scheduling": False},
        "cache_config": {"block_size": 32, "num_gpu_blocks": 77},
    }
    it = meta(tmp_path, resolved_config=resolved)
    expected = {
        "scheduler": {"max_model_len": 4096, "order": "priority", "async_scheduling": False},
        "cache": {"block_tokens": 32},
        "memory": {"num_blocks": 77},
    }
    assert it.settings == expected


def test_data_parallel_engines_are_replicas(tmp_path):
    it = meta(tmp_path, engine_kwargs={"data_parallel_size": 2})
    assert it.settings["cluster"] == {"replicas": 2}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"engine_kwargs": {"max_num_seqs": "many"}}, "scheduler: max_num_seqs: must be a whole"),
        ({"scheduler_config": {"policy": "lottery"}}, "scheduler: order: .*lottery"),
        ({"kv_cache": {"num_gpu_blocks": 1}}, "num_gpu_blocks is 1; expected a whole number >= 2"),
        ({"kv_cache": {"gpu_memory_utilization": 90}}, "gpu_memory_utilization is 90; expected 0"),
        ({"engine_kwargs": {"data_parallel_size": 0}}, "data_parallel_size is 0; expected a whole"),
    ],
)
def test_a_meta_that_cannot_be_is_refused(tmp_path, content, said):
    with pytest.raises(ConfigError, match=rf"meta.json: {said}"):
        meta(tmp_path, **content)


# ---- servers and load generators


def test_columns_by_other_names_and_units(tmp_path):
    path = csv(
        tmp_path,
        "id,Arrival Time (ms),Prompt Tokens,Completion Tokens,TTFT (ms),E2E Latency [s]",
        "a,1000,100,11,250,1.25",
        "b,500,200,21,125,2.5",
    )
    it = read_run(path)
    assert it.requests["arrival_s"].to_list() == [0.5, 1.0]
    assert it.requests["first_token_s"].to_list() == [0.625, 1.25]
    assert it.requests["finish_s"].to_list() == [3.0, 2.25]
    assert it.requests["prompt_tokens"].to_list() == [200, 100]
    assert it.requests["queued_s"].null_count() == 2
    assert it.prefix_hashes is None
    assert [request.hashes for request in to_requests(it)] == [(), ()]


def test_time_per_output_token_gives_the_end(tmp_path):
    path = csv(tmp_path, "arrival_s,prompt_len,output_len,ttft_s,tpot_ms", "0,100,11,0.5,20")
    assert read_run(path).requests["finish_s"].to_list() == pytest.approx([0.7])


def test_dates_are_times(tmp_path):
    path = csv(
        tmp_path,
        "timestamp,input_tokens,output_tokens,ttft_ms,latency_ms",
        "2026-05-10 00:00:10.5,100,11,50,1000",
        "2026-05-10 00:00:10.25,100,11,50,1000",
    )
    assert read_run(path).requests["arrival_s"].to_list() == pytest.approx([0, 0.25])


def test_failed_requests_are_left_out_and_counted(tmp_path):
    path = csv(
        tmp_path,
        "arrival_s,prompt_tokens,output_tokens,ttft_s,e2e_s",
        "0,100,11,0.5,1",
        "1,100,0,,",
    )
    it = read_run(path)
    assert len(it.requests) == 1
    assert it.about["left_out"] == 1


def bench(folder: Path, **changes: Any) -> Path:
    """As vllm/benchmarks/serve.py (vLLM, Apache-2.0) saves it with --save-detailed."""
    result = {
        "date": "20260512-101112",
        "backend": "openai",
        "model_id": "meta-llama/Llama-3.1-8B",
        "request_rate": 10.0,
        "max_concurrency": None,
        "duration": 3.0,
        "completed": 2,
        "mean_ttft_ms": 75.0,
        "input_lens": [100, 200, 300],
        "output_lens": [3, 2, 0],
        "ttfts": [0.05, 0.1, 0.0],
        "itls": [[0.01, 0.02], [0.03], []],
        "start_times": [5000.5, 5000.0, 5001.0],
        "generated_texts": ["a b c", "a b", ""],
        "errors": ["", "", "ClientConnectorError"],
    }
    return jsonl(folder, result | changes, name="openai-10qps.json")


def test_saved_details_of_vllm_bench_serve(tmp_path):
    it = read_run(bench(tmp_path))
    assert it.requests["arrival_s"].to_list() == pytest.approx([0.0, 0.5])
    assert it.requests["first_token_s"].to_list() == pytest.approx([0.1, 0.55])
    assert it.requests["finish_s"].to_list() == pytest.approx([0.13, 0.58])
    assert it.requests["output_tokens"].to_list() == [2, 3]
    assert it.about["model"] == "meta-llama/Llama-3.1-8B"


def test_measured_latencies_come_before_sums_of_gaps(tmp_path):
    it = read_run(bench(tmp_path, latencies=[0.09, 0.14, 0.0]))
    assert it.requests["finish_s"].to_list() == pytest.approx([0.14, 0.59])


def test_without_start_times_an_infinite_rate_means_all_at_once(tmp_path):
    path = bench(tmp_path, request_rate="inf")
    result = json.loads(path.read_text())
    del result["start_times"]
    path.write_text(json.dumps(result, indent=1))
    assert read_run(path).requests["arrival_s"].to_list() == [0.0, 0.0]
    path.write_text(json.dumps(result | {"request_rate": 10.0}))
    with pytest.raises(ConfigError, match=r"openai-10qps.json:1: has no start_times"):
        read_run(path)


def test_one_saved_result_at_a_time(tmp_path):
    path = bench(tmp_path)
    path.write_text(path.read_text() * 2)
    with pytest.raises(ConfigError, match=r"holds 2 saved results; expected one"):
        read_run(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ttfts": None}, "has no list ttfts; save the result with --save-detailed"),
        ({"output_lens": [3]}, "output_lens has 1 entries, ttfts 3; expected one for each request"),
    ],
)
def test_a_saved_result_that_lacks_something(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=f"openai-10qps.json:1: {said}"):
        read_run(bench(tmp_path, **changes))


# ---- kvcast's own


def test_a_simulated_run_read_back(tmp_path):
    scenario = scenario_of(
        {
            "trace": {"path": "sample:chat", "operations": [{"limit": {"count": 50}}]},
            "scheduler": {"max_num_seqs": 64},
        }
    )
    result = replay_to_folder(scenario, tmp_path / "out", report=False)
    it = read_run(tmp_path / "out")
    table = pl.read_parquet(tmp_path / "out" / "requests.parquet").sort("arrival_s", "request_id")
    assert len(it.requests) == result.summary["requests"]["finished"] == 50
    for name in ("arrival_s", "queued_s", "first_token_s", "finish_s", "cached_tokens"):
        assert it.requests[name].to_list() == table[name].to_list()
    assert it.requests["scheduled_s"].to_list() == table["admitted_s"].to_list()
    assert it.requests["output_tokens"].to_list() == table["generated_tokens"].to_list()
    assert it.settings["scheduler"]["max_num_seqs"] == 64
    SchedulerSettings.model_validate(it.settings["scheduler"])
    CacheSettings.model_validate(it.settings["cache"])
    scenario_of(merged(scenario.model_dump(), it.settings))


# ---- what is refused

HEADER = "id,arrival_s,prompt_tokens,output_tokens,ttft_s,e2e_s"
GOOD = "a,0,100,11,0.5,1.5"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([HEADER], r"log.csv: has no rows"),
        (
            ["id,arrival_s,prompt_tokens", "a,0,1"],
            r"no column for output tokens \(output_tokens\);",
        ),
        (
            ["arrival_s,prompt_tokens,output_tokens,ttft,e2e_s", "0,1,1,1,1"],
            r"no column for a first token .*; ttft has no unit: name it ttft_s or _ms",
        ),
        ([HEADER, GOOD, "b,0,100,11,500,1.5"], r"log.csv:3: ttft_s is '500'; expected at most e2e"),
        ([HEADER, GOOD, "b,0,100,11,-1,1.5"], r"log.csv:3: ttft_s is '-1'; expected a finite"),
        ([HEADER, GOOD, "b,0,100,11,nan,1.5"], r"log.csv:3: ttft_s is 'nan'; expected a finite"),
        ([HEADER, GOOD, "b,x,100,11,1,1.5"], r"log.csv:3: arrival_s is 'x'; expected a finite"),
        ([HEADER, GOOD, "b,0,0,11,1,1.5"], r"log.csv:3: prompt_tokens is '0'; expected a whole"),
        ([HEADER, GOOD, "b,0,1.5,11,1,1.5"], r"prompt_tokens is '1.5'; expected a whole number"),
        ([HEADER, GOOD, "a,1,100,11,1,1.5"], r"log.csv:3: id is 'a'; expected another one: .*:2"),
        ([HEADER, GOOD, "b,0,100"], r"log.csv:3: has 3 columns; expected 6"),
        ([HEADER, "a,0,100,0,,"], r"log.csv: none of its 1 requests was answered"),
        (
            [HEADER.replace("e2e_s", "tpot_s"), "a,0,100,0,0.5,0.01"],
            r"log.csv:2: output_tokens is '0'; expected at least 1, as tpot_s is 0.01",
        ),
        ([HEADER, "a,0,100,11,0.5,900"], r"log.csv: a token every 90 s \(median\); expected"),
        (
            ["arrival_s,prompt_len,output_len,first_token_s,finish_s", "5,10,2,4,6"],
            r"log.csv:2: first token is 1 s before its arrival; expected clocks that agree",
        ),
        (
            ["arrival_s,prompt_len,output_len,first_token_s,finish_s", "5,10,2,7,6"],
            r"log.csv:2: finish is 1 s before its first token",
        ),
        (
            [HEADER + ",block_hashes", GOOD + ",1 2 x"],
            r"log.csv:2: block_hashes is '1 2 x'; expected whole numbers",
        ),
        (
            [HEADER + ",block_hashes", GOOD + ",1 2", "b,1,100,11,1,1.5,3 2"],
            r"log.csv:3: hash 2 follows 3 here and 1 elsewhere; expected hashes of everything",
        ),
        (
            [HEADER + ",block_hashes", GOOD + ",1 2 3 4 5 6 7 8"],
            r"log.csv:2: has 8 hashes; expected at most 7, one for each 16 of 100 prompt tokens",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(tmp_path, lines, said):
    with pytest.raises(ConfigError, match=said) as refused:
        read_run(csv(tmp_path, *lines))
    assert "\n" not in str(refused.value)


def test_no_such_file(tmp_path):
    with pytest.raises(TraceError, match=r"none.csv: no such file"):
        read_run(tmp_path / "none.csv")


def test_rounded_clocks_are_no_disorder(tmp_path):
    path = csv(
        tmp_path,
        "arrival_s,queued_s,prompt_len,output_len,first_token_s,finish_s",
        "5,4.9999,10,2,5.2,5.4",
    )
    assert read_run(path).requests["queued_s"].to_list() == [4.9999]
