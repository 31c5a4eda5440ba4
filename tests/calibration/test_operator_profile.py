"""Operator tables written beside a profile are the same when they are read back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from calibration.operator_profile import (
    VLLM_GRAPHS,
    OperatorSettings,
    read_tables,
    write_tables,
)
from calibration.operators import SkewTable, operator_cost
from calibration.profiles import load_profile
from tests.calibration.test_operators import tables
from tests.calibration.test_roofline import batch_of
from traces.errors import ConfigError

SKEW = SkewTable((2, 8), (0.25, 1), (256,), (0, 9), {(0, 1, 0, 0, 1): 0.5}, 0.1)


@pytest.mark.parametrize(
    "written", [tables(), tables(mixed=False), replace(tables(), skew=SKEW)], ids=str
)
def test_what_is_written_is_read(tmp_path: Path, written):
    write_tables(written, tmp_path / "t.parquet")
    again = read_tables(tmp_path / "t.parquet")
    assert (again.tokens, again.rows, again.skew) == (written.tokens, written.rows, written.skew)
    for name in ("prefill", "decode", "mixed"):
        one, other = getattr(again.attention, name), getattr(written.attention, name)
        assert np.array_equal(one, other)
    for name in ("chunks", "prefill_contexts", "decodes", "decode_contexts"):
        assert getattr(again.attention, name) == getattr(written.attention, name)


def test_settings_give_the_cost_of_their_tables(tmp_path: Path):
    write_tables(tables(), tmp_path / "t.parquet")
    (tmp_path / "p.yaml").write_text(
        "name: p\nmeasured: true\nprovenance: made up\nmodel: llama-3.1-8b\ngpu: a100-80\n"
        "cost: {kind: operators, tables: t.parquet, host_step_s: 5.0e-4}\n"
    )
    profile = load_profile(tmp_path / "p.yaml")
    step = batch_of(3, 90, [(20, 4)])
    for overlap in (True, False):
        cost = profile.cost_model(async_scheduling=overlap)
        same = operator_cost(tables(), VLLM_GRAPHS, 0.0, 5e-4, 8e-6, overlap)
        assert cost.progression(step) == same.progression(step)


def test_vllm_captures_51_sizes():
    assert VLLM_GRAPHS[:5] == (1, 2, 4, 8, 16)
    assert (len(VLLM_GRAPHS), VLLM_GRAPHS[-1]) == (51, 512)


def test_what_is_wrong_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="there is no such file"):
        read_tables(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tables(tmp_path / "text.parquet")
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match="is no file of operator tables; it has columns a"):
        read_tables(tmp_path / "other.parquet")
    with pytest.raises(ValidationError, match="graph_sizes: must increase"):
        OperatorSettings(kind="operators", tables="t", graph_sizes=(2, 1))
