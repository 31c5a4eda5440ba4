"""Forward-pass metrics of vLLM, SGLang and Dynamo as measured steps."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.imports.forward_pass import estimated_pairs, read_forward_pass
from calibration.steps import STEP_FRAME
from tests.decisions import rows
from tests.recorded import HERE, case_folder
from traces.errors import ConfigError

CASES_HERE = sorted(meta.parent.name for meta in HERE.glob("*/meta.json"))

# from "Record Shape" of Dynamo's reference of forward pass metrics traces
# (https://docs.nvidia.com/dynamo/dev/observability/forward-pass-metrics-traces, Apache-2.0)
RECORD: dict[str, Any] = json.loads("""
{
  "timestamp": 1250,
  "event": {
    "schema": "dynamo.fpm.trace.v1",
    "source": {
      "namespace": "default",
      "component": "backend",
      "producer_id": "4192"
    },
    "capture_mode": "sampled",
    "observed_at_unix_ms": 1782777601250,
    "fpm": {
      "version": 1,
      "worker_id": "4192",
      "dp_rank": 0,
      "counter_id": 42,
      "wall_time": 0.025,
      "scheduled_requests": {
        "num_prefill_requests": 2,
        "sum_prefill_tokens": 256,
        "var_prefill_length": 100.0,
        "sum_prefill_kv_tokens": 64,
        "num_decode_requests": 3,
        "sum_decode_kv_tokens": 1024,
        "var_decode_kv_tokens": 50.0
      },
      "queued_requests": {
        "num_prefill_requests": 1,
        "sum_prefill_tokens": 128,
        "var_prefill_length": 0.0,
        "num_decode_requests": 0,
        "sum_decode_kv_tokens": 0,
        "var_decode_kv_tokens": 0.0
      }
    }
  }
}
""")
FPM: dict[str, Any] = RECORD["event"]["fpm"]
IDLE = FPM | {"wall_time": 0.0, "scheduled_requests": dict.fromkeys(FPM["scheduled_requests"], 0)}


def log(folder: Path, *records: dict[str, Any]) -> Path:
    path = folder / "fpm.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def scheduled(**changes: Any) -> dict[str, Any]:
    return FPM | {"scheduled_requests": FPM["scheduled_requests"] | changes}


def test_the_documented_record(tmp_path):
    path = tmp_path / "dynamo-fpm.4192.000000.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(RECORD).encode()))
    frame = read_forward_pass(path)
    assert list(frame.columns) == list(STEP_FRAME)
    assert frame.row(0, named=True) == {
        "decodes": 3,
        "decode_context_tokens": 1024 + 3,
        "prefills": 2,
        "prefill_tokens": 256,
        "prefill_context_tokens": 64 + 256,
        "prefill_pairs": 128 * 128 + 64 + 128 + 64 * 128,  # 64: 100 x (256 / 320)^2
        "graph_tokens": 0,
        "time_s": 0.025,
        "device_s": None,
        "held_out": False,
        "outlier": False,
        "source": "dynamo-fpm.4192.000000.jsonl.gz:4192/0",
    }


def test_envelopes_do_not_matter(tmp_path):
    flat = {k: v for k, v in FPM.items() if not k.endswith("_requests")}
    flat |= FPM["scheduled_requests"]
    frame = read_forward_pass(log(tmp_path, RECORD, RECORD["event"], FPM, flat))
    assert len(frame.unique()) == 1


def test_results_of_a_self_benchmark(tmp_path):
    path = tmp_path / "benchmark.json"
    result = {"config": {"mode": "agg"}, "results": [{"point": {}, "fpms": [FPM, FPM]}] * 3}
    path.write_text(json.dumps(result, indent=2))
    assert len(read_forward_pass(path)) == 6


def test_idle_steps_are_left_out_and_workers_told_apart(tmp_path):
    frame = read_forward_pass(log(tmp_path, FPM, IDLE, FPM | {"dp_rank": 1}, FPM))
    assert frame["source"].to_list() == [f"fpm.jsonl:4192/{rank}" for rank in (0, 1, 0)]


def test_time_on_the_cuda_timeline_is_the_devices(tmp_path):
    # vllm/v1/metrics/forward_pass_metrics.py: FPM_TIMING_SCOPE_EXECUTE_MODEL_CUDA
    frame = read_forward_pass(log(tmp_path, FPM | {"timing_scope": "execute_model_cuda"}))
    assert frame["device_s"].to_list() == [0.025]


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=20))
def test_pairs_of_whole_prompts_are_exact(chunks):
    mean = sum(chunks) / len(chunks)
    variance = sum((chunk - mean) ** 2 for chunk in chunks) / len(chunks)
    true = sum(chunk * (chunk + 1) // 2 for chunk in chunks)
    assert estimated_pairs(len(chunks), sum(chunks), variance, 0) == pytest.approx(true, abs=1)


@given(st.integers(1, 5000), st.integers(0, 100_000), st.floats(0, 1e9))
def test_pairs_of_a_single_chunk_are_exact(chunk, before, variance):
    assert estimated_pairs(1, chunk, variance, before) == chunk * before + chunk * (chunk + 1) // 2


@given(st.integers(1, 20), st.integers(0, 3000), st.floats(0, 1e12))
def test_pairs_are_at_most_those_of_one_long_chunk(chunks, more, variance):
    tokens = chunks + more
    longest = more + 1
    most = longest * (longest + 1) // 2 + chunks - 1
    assert estimated_pairs(chunks, tokens, variance, 0) <= most


def recorded_prefills(case: str) -> Iterable[list[tuple[int, int, int]]]:
    """Chunk, tokens before it and whole prompt of each prefill, in each step of a scheduler."""
    prompts = {
        row["id"]: row.get("input_tokens") or len(row["prompt_token_ids"])
        for row in rows(case_folder(case) / "requests.jsonl.gz")
    }
    done: dict[str, int] = {}
    for step in rows(case_folder(case) / "steps.jsonl.gz"):
        prefills: list[tuple[int, int, int]] = []
        for name, chunk in step["scheduled"].items():
            if name in step["new"] or name in step["resumed"]:
                done[name] = step["cached"].get(name, 0)
            if chunk > 1:
                prefills.append((chunk, done[name], prompts[name]))
            done[name] += chunk
        yield prefills


def test_pairs_from_sums_against_recorded_schedules():
    """Steps of a real scheduler, in which a budget cuts long prompts and others are cached."""
    errors: list[float] = []
    true_pairs = estimates = 0
    for case in CASES_HERE:
        for prefills in recorded_prefills(case):
            if len(prefills) < 2:
                continue
            chunks, befores, prompts = zip(*prefills, strict=True)
            mean = sum(prompts) / len(prompts)
            variance = sum((prompt - mean) ** 2 for prompt in prompts) / len(prompts)
            true = sum(c * b + c * (c + 1) // 2 for c, b, _ in prefills)
            estimate = estimated_pairs(len(chunks), sum(chunks), variance, sum(befores))
            errors.append(abs(estimate / true - 1))
            true_pairs += true
            estimates += estimate
    assert estimates == pytest.approx(true_pairs, rel=0.1)
    assert sorted(errors)[len(errors) // 2] < 0.1


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (FPM | {"version": 2}, r"fpm.jsonl:1: version is 2; expected 1"),
        ({"wall_time": 0.1}, r"fpm.jsonl:1: has no num_prefill_requests"),
        (FPM | {"wall_time": -1}, r"fpm.jsonl:1: wall_time is '-1'; expected a finite number >= 0"),
        (FPM | {"wall_time": float("nan")}, r"fpm.jsonl:1: wall_time is 'nan'"),
        (FPM | {"wall_time": 0}, r"fpm.jsonl:1: wall_time is '0'; expected more than 0"),
        (scheduled(num_decode_requests=1.5), r"num_decode_requests is '1.5'; expected a whole"),
        (scheduled(sum_prefill_tokens=1), r"sum_prefill_tokens is '1'; expected at least 2"),
        (IDLE, r"fpm.jsonl: every record is idle"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(tmp_path, record, said):
    with pytest.raises(ConfigError, match=said):
        read_forward_pass(log(tmp_path, record))


def test_a_broken_line_is_named(tmp_path):
    path = log(tmp_path, FPM)
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(ConfigError, match=r"fpm.jsonl:2: is no JSON"):
        read_forward_pass(path)
