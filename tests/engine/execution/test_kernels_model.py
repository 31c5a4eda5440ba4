import random
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("triton")

from tests.engine.execution.caches import DEVICE, error
from tests.engine.execution.families import make, random_tokens, save
from tests.engine.execution.steps import Stepper, load


@pytest.mark.parametrize(
    ("family", "kv_dtype"),
    [("mistral-window", "fp32"), ("qwen3", "fp8"), ("mistral", "k8v4")],
)
def test_models_give_the_same_logits_with_both_sets_of_operations(
    family: str, kv_dtype: str, tmp_path: Path
) -> None:
    """Chunks, decodes and both together, each set with a pool of its own."""
    changes = {"head_dim": 64} if kv_dtype == "k8v4" else {}
    folder = save(make(family, **changes), tmp_path)
    both = [
        Stepper(load(folder, device=DEVICE, kernels=kernels), kv_dtype=kv_dtype)
        for kernels in ("triton", "torch")
    ]
    draw = random.Random(7)
    first, second = random_tokens(21, draw), random_tokens(12, draw)
    for decodes, prefills in (
        ([], [(1, first[:17])]),
        ([(1, first[17])], [(2, second[:10])]),
        ([(1, first[18]), (2, second[10])], []),
        ([(2, second[11])], [(1, first[19:])]),
    ):
        found, expected = (stepper.step(decodes, prefills) for stepper in both)
        # a number of the cache that is rounded the other way shows
        assert error(found, expected) < (1e-5 if kv_dtype == "fp32" else 1e-2)
