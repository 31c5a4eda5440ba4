"""Recorded decisions, step by step, with a real model behind them."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from engine.config import EngineSettings
from engine.execution.executor import TorchExecutor, load_executor
from tests.decisions import rows, settings_of
from tests.engine.timed import first_difference
from tests.recorded import HERE

CASES = sorted(folder.name for folder in HERE.iterdir())

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_schedule_is_the_recorded_one_with_a_model_behind_it(case: str, tmp_path: Path):
    folder = HERE / case
    params = json.loads((folder / "meta.json").read_text())["params"]
    scheduler, cache = settings_of(params)

    def tiny(num_blocks: int, block_tokens: int, vocab: int) -> TorchExecutor:
        config = {**TINY, "vocab_size": vocab}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return load_executor(
            EngineSettings(
                model=str(tmp_path),
                weights="dummy",
                device="cpu",
                num_blocks=num_blocks,
                scheduler=scheduler,
                cache=cache,
            )
        )

    requests = rows(folder / "requests.jsonl.gz")
    steps = rows(folder / "steps.jsonl.gz")
    per_request = rows(folder / "per_request.jsonl.gz")
    assert first_difference(params, requests, steps, per_request, tiny) is None
