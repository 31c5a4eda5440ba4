"""vLLM's log with a line a step: what it says, what it cannot, and when it must not be believed."""

from pathlib import Path

import pytest

from calibration.imports.iteration_log import CONTEXT_TERMS, WARMUP_STEPS, read_iteration_log
from traces.errors import ConfigError

# as printed in https://github.com/vllm-project/vllm/pull/31193 (vLLM, Apache-2.0)
PRINTED = """\
(EngineCore_DP0 pid=2010410) INFO 12-22 21:44:40 [core.py:349] Iteration(515): 0 context requests, \
0 context tokens, 20 generation requests, 20 generation tokens, iteration elapsed time: 10.99 ms
(EngineCore_DP0 pid=2010410) INFO 12-22 21:44:40 [core.py:349] Iteration(516): 0 context requests, \
0 context tokens, 20 generation requests, 20 generation tokens, iteration elapsed time: 10.95 ms
(EngineCore_DP0 pid=2010410) INFO 12-22 21:44:40 [core.py:349] Iteration(517): 0 context requests, \
0 context tokens, 20 generation requests, 20 generation tokens, iteration elapsed time: 10.79 ms
"""

# the form of later versions, whose statistics logger prints the line
KV_SIZE = (
    "(EngineCore pid=7) INFO 09-27 11:16:59 [kv_cache_utils.py:1087] GPU KV cache size: {} tokens"
)
LINE = (
    "(APIServer pid=1) INFO 09-27 11:17:17 [loggers.py:182] Engine 000: Iteration({}): "
    "{} context requests, {} context tokens, {} generation requests, {} generation tokens, "
    "iteration elapsed time: {} ms, GPU KV cache usage: {}%"
)


def log(folder: Path, *lines: str) -> Path:
    path = folder / "server.log"
    path.write_text("\n".join(lines) + "\n")
    return path


def iteration(
    number: int, prefills: int, chunk: int, decodes: int, ms: float, usage: float = 10.0
) -> str:
    return LINE.format(number, prefills, chunk, decodes, decodes, ms, usage)


def test_lines_as_printed_by_vllm(tmp_path):
    it = read_iteration_log(log(tmp_path, "INFO: Application startup complete.", PRINTED))
    assert it.steps["decodes"].to_list() == [20, 20, 20]
    assert it.steps["prefill_tokens"].to_list() == [0, 0, 0]
    assert it.steps["time_s"].to_list() == pytest.approx([0.01099, 0.01095, 0.01079])
    assert it.steps["source"].unique().to_list() == ["engine 0"]
    assert it.skipped_lines == 2  # the empty one at the end too


def test_contexts_that_no_line_tells_are_named(tmp_path):
    it = read_iteration_log(log(tmp_path, PRINTED))
    assert it.unidentified == CONTEXT_TERMS
    assert it.steps["decode_context_tokens"].to_list() == [0, 0, 0]


def test_usage_alone_tells_no_contexts(tmp_path):
    it = read_iteration_log(log(tmp_path, iteration(0, 0, 0, 4, 9.0)))
    assert it.unidentified == CONTEXT_TERMS


def test_blocks_in_use_tell_contexts_of_steps_of_one_kind(tmp_path):
    lines = [KV_SIZE.format("40,000")]
    lines += [iteration(i, 0, 0, 4, 9.0) for i in range(WARMUP_STEPS)]
    lines += [iteration(7, 0, 0, 10, 9.0, 50.0), iteration(8, 1, 500, 0, 30.0, 2.5)]
    lines += [iteration(9, 1, 500, 10, 35.0, 52.5)]
    it = read_iteration_log(log(tmp_path, *lines))
    assert it.unidentified == ()
    *_, decode, prefill, mixed = it.steps.iter_rows(named=True)
    assert decode["decode_context_tokens"] == 20_000 - 10 * 8
    assert prefill["prefill_context_tokens"] == 1000 - 8
    assert prefill["prefill_pairs"] == 500 * 492 + 500 * 501 // 2
    assert not decode["outlier"]
    assert not prefill["outlier"]
    assert mixed["outlier"]
    assert mixed["decode_context_tokens"] == 0


def test_the_size_of_the_cache_may_be_given(tmp_path):
    path = log(tmp_path, iteration(0, 0, 0, 10, 9.0, 50.0))
    frame = read_iteration_log(path, kv_tokens=40_000).steps
    assert frame["decode_context_tokens"].to_list() == [19_920]


def test_engines_are_told_apart_and_each_warms_up(tmp_path):
    lines = [iteration(i, 0, 0, 4, 9.0) for i in range(5)]
    lines += [line.replace("Engine 000", "Engine 001") for line in lines]
    frame = read_iteration_log(log(tmp_path, *lines)).steps
    for source in ("engine 0", "engine 1"):
        one = frame.filter(frame["source"] == source)
        assert one["outlier"].to_list() == [True] * WARMUP_STEPS + [False] * 2


def test_dummy_steps_of_idle_ranks_are_left_out(tmp_path):
    dummy = iteration(1, 0, 0, 0, 9.0) + " (dummy)"
    assert len(read_iteration_log(log(tmp_path, iteration(0, 0, 0, 4, 9.0), dummy)).steps) == 1


def test_a_log_without_such_lines_names_the_flag(tmp_path):
    with pytest.raises(ConfigError, match=r"server.log: no line of its 2 .*--enable-logging-iter"):
        read_iteration_log(log(tmp_path, "INFO: hello", "INFO: bye"))


def test_times_of_waits_are_refused(tmp_path):
    # asynchronous: of two steps the second is done as its wait begins
    lines = [iteration(i, 0, 0, 50, 10.25 if i % 2 else 0.03) for i in range(20)]
    with pytest.raises(ConfigError, match=r"10 of 20 iterations .*--no-async-scheduling"):
        read_iteration_log(log(tmp_path, *lines))


def test_a_few_waits_are_outliers(tmp_path):
    lines = [iteration(i, 0, 0, 50, 0.03 if i == 30 else 10.0) for i in range(40)]
    frame = read_iteration_log(log(tmp_path, *lines)).steps
    assert frame["outlier"].arg_true().to_list() == [0, 1, 2, 30]


def test_speculative_decoding_is_refused_with_its_line(tmp_path):
    line = LINE.format(0, 0, 0, 3, 24, 1.25, 95.0)
    with pytest.raises(ConfigError, match=r"server.log:1: 24 generation tokens of 3 requests"):
        read_iteration_log(log(tmp_path, line))
