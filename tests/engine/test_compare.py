"""Variants side by side: the same requests, answers held against the first row's."""

import csv
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from engine.compare import AS_IS, VARIANTS, Row, compare, write_rows
from engine.config import EngineSettings
from engine.loading import LoadedModel
from engine.serve import ReplaySettings
from engine.tables import compare_table
from tests.engine.served import Loader, settings
from traces.errors import ConfigError
from traces.settings import setting_names

SMALL = {"limit": 10, "max_tokens": 6, "repeats": 1}


def chats(**changes: Any) -> ReplaySettings:
    """Prompts of a few hundred tokens, which share some."""
    limits = {"max_num_batched_tokens": 512, "max_model_len": None}
    return settings(scheduler=limits | changes.pop("scheduler", {}), num_blocks=2000, **changes)


def printed(rows: list[Row], width: int = 80) -> str:
    console = Console(width=width, file=StringIO())
    console.print(compare_table(rows))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return compare(chats(), load=Loader(), **SMALL)


def test_there_is_a_row_for_each_variant_and_the_first_is_the_measure(rows: list[Row]):
    assert [row.variant for row in rows] == list(VARIANTS)
    assert rows[0].variant == AS_IS
    assert rows[0].ratio == 1
    for row in rows:
        assert not row.refused
        assert row.output_tokens_per_s is not None
        assert row.output_tokens_per_s > 0
        assert row.ratio == pytest.approx(row.output_tokens_per_s / rows[0].output_tokens_per_s)


def test_without_the_prefix_cache_nothing_is_found(rows: list[Row]):
    hits = {row.variant: row.hit_rate for row in rows}
    assert hits[AS_IS] is not None
    assert hits[AS_IS] > 0.1
    without = {"no KV cache", "contiguous", "no prefix cache"}
    assert {name for name, rate in hits.items() if rate == 0} == without


def test_all_variants_say_the_same(rows: list[Row]):
    assert all(row.answers == row.same_answers == 10 for row in rows)
    assert sum(row.comparable for row in rows) == len(rows) - 3  # those with 8 and 4 bits
    text = printed(rows)
    assert "all 6 variants without quantised KV gave the same answers" in text
    assert "…" not in text


def test_each_variant_is_the_settings_with_its_changes_and_is_closed():
    loader = Loader()
    base = chats()
    compare(base, load=loader, **SMALL)
    assert loader.closed
    longest = {model.settings.scheduler.max_model_len for model in loader.models}
    assert len(longest) == 1
    assert None not in longest
    changed = {
        name: value_of(loader.models[0].settings, name) for name in setting_names(EngineSettings)
    }
    for (variant, changes), model in zip(VARIANTS.items(), loader.models, strict=True):
        stated = dict(flat(changes))
        for name, value in changed.items():
            assert value_of(model.settings, name) == stated.get(name, value), (variant, name)


def value_of(chosen: EngineSettings, name: str) -> Any:
    value: Any = chosen
    for part in name.split("."):
        value = getattr(value, part)
    return value


def flat(changes: Any, above: str = "") -> list[tuple[str, Any]]:
    if not isinstance(changes, dict):
        return [(above.rstrip("."), changes)]
    return [pair for name, value in changes.items() for pair in flat(value, f"{above}{name}.")]


def test_an_answer_that_differs_is_pointed_out_unless_the_cache_rounds():
    """The trace knows the answers, but it is the models' own that are compared."""

    def odd(asked: EngineSettings) -> bool:
        return asked.cache.eviction == "fifo" or asked.kv_dtype == "int8"

    rows = compare(chats(), load=Loader(odd), **SMALL)
    differing = {row.variant: row for row in rows if row.answers != row.same_answers}
    assert set(differing) == {"FIFO eviction", "KV in int8"}
    assert differing["FIFO eviction"].differs
    assert not differing["KV in int8"].differs
    assert differing["FIFO eviction"].first_difference == 0
    text = " ".join(printed(rows).split())
    assert "FIFO eviction: 10 of 10 answers are not those of the first row" in text
    assert "KV in int8: " not in text
    assert "gave the same answers" not in text


def test_a_variant_that_cannot_be_had_has_a_row_that_says_why():
    loader = Loader()

    def load(asked: EngineSettings) -> LoadedModel:
        if asked.kv_dtype == "int4":
            raise ConfigError("kv dtype int4: needs a head_dim that is a multiple of 64, got 16")
        return loader(asked)

    swap = {"preemption": "swap", "async_scheduling": False}
    rows = compare(chats(scheduler=swap, offload={"cpu_bytes": 100}), load=load, **SMALL)
    refused = {row.variant: row.refused for row in rows if row.refused}
    assert set(refused) == {"KV in int4"}
    assert "KV in int4: not possible: kv dtype int4: needs a head_dim" in " ".join(
        printed(rows).split()
    )
    conflict = {AS_IS: {}, "odd": {"cache": {"allocation": "contiguous"}}}
    rows = compare(chats(), variants=conflict, load=loader, **SMALL)
    assert rows[1].refused.startswith("cache: allocation: contiguous memory shares nothing")


def test_where_the_first_row_cannot_be_had_there_is_nothing_to_compare():
    def load(asked: EngineSettings) -> LoadedModel:
        raise ConfigError("no")

    with pytest.raises(ConfigError, match=r"^no$"):
        compare(chats(), load=load, **SMALL)


@pytest.mark.parametrize("name", ["rows.csv", "rows.json"])
def test_rows_are_written_whole(rows: list[Row], tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_text("old")
    write_rows(rows, path)
    if path.suffix == ".json":
        read = json.loads(path.read_text())
        assert [Row(**one) for one in read] == rows
    else:
        read = list(csv.DictReader(StringIO(path.read_text())))
        assert [one["variant"] for one in read] == list(VARIANTS)
        assert [float(one["ratio"]) for one in read] == [row.ratio for row in rows]
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_tells_no_format_is_refused(rows: list[Row], tmp_path: Path):
    with pytest.raises(ConfigError, match=r"end the name in \.csv or \.json"):
        write_rows(rows, tmp_path / "rows.txt")
    with pytest.raises(ConfigError, match=r"rows\.csv: cannot be written: No such file"):
        write_rows(rows, tmp_path / "none" / "rows.csv")
    assert list(tmp_path.iterdir()) == []
