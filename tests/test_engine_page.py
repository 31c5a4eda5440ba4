"""docs/engine.md says what the engine is: settings, formats, columns; its example runs."""

import re
from pathlib import Path

import pytest
import yaml

from engine.config import EngineSettings
from engine.eviction import EVICTION
from engine.kvformats import ENCODINGS, KV_DTYPES
from engine.policies import ORDER
from engine.serve import ReplaySettings
from engine.steps import STEP_COLUMNS
from tests.commands import ROOT
from tests.engine.toy import save_tokenizer, toy_model
from traces.settings import setting_names

DOC = (ROOT / "docs" / "engine.md").read_text("utf-8")


def test_the_page_lists_every_setting_with_its_default():
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \| ([^|]+) \| [^|]*\| [^|]+ \|$", DOC, re.MULTILINE)
    listed = {name: default.strip().strip("`") for name, default in rows}
    assert list(listed) == list(setting_names(ReplaySettings))
    defaults = ReplaySettings(model="none")
    for name, default in listed.items():
        if name == "model":
            assert default == "required"
            continue
        value: object = defaults
        for part in name.split("."):
            value = getattr(value, part)
        value = list(value) if isinstance(value, tuple) else value
        assert yaml.safe_load("null" if default == "none" else default) == value, name


def test_the_page_explains_every_column_of_the_steps():
    table = DOC.partition("## steps.parquet")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\| [^|]+ \|$", table, re.MULTILINE)
    assert [name for name, _ in rows] == [name for name, _ in STEP_COLUMNS]


@pytest.mark.parametrize("names", [KV_DTYPES, ORDER, EVICTION], ids=len)
def test_the_page_names_every_choice(names: dict[str, object]):
    assert [name for name in names if f"`{name}`" not in DOC] == []


def test_the_page_states_the_bytes_of_every_format():
    """Bytes a token takes in a head of 128 channels and blocks of 16 tokens, keys and values."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([0-9.]+) \|$", DOC, re.MULTILINE)
    stated = {name: float(size) for name, size in rows if name in KV_DTYPES}
    assert list(stated) == list(KV_DTYPES)
    for name, kinds in KV_DTYPES.items():
        vectors = sum(ENCODINGS[kind].vector_bytes(128) for kind in kinds)
        scales = sum(ENCODINGS[kind].scale_bytes(128, 16) for kind in kinds) / 16
        assert stated[name] == vectors + scales, name


def test_engine_settings_are_those_of_a_replay_and_more():
    names = list(setting_names(ReplaySettings))
    assert names[: len(list(setting_names(EngineSettings)))] == list(setting_names(EngineSettings))


def test_the_python_of_the_page_runs(tmp_path: Path):
    pytest.importorskip("torch")
    pytest.importorskip("tokenizers")
    model = toy_model(tmp_path / "toy")
    save_tokenizer(tmp_path / "toy")
    (example,) = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    example = example.replace(
        'model="path/to/model"', f'model="{model}", weights="dummy", device="cpu", num_blocks=60'
    )
    names: dict[str, object] = {}
    exec(example.replace("path/to/model", model), names)
    answers = names["answers"]
    assert isinstance(answers, list)
    assert answers[0].text.split()
