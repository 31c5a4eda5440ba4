import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton.backends.nvidia")

LLAMA = "bf16:32:8:128"
SHARED_BYTES = 227 * 1024
"""Of a multiprocessor, for one program."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "cases",
    [
        ["elementwise:bf16", f"bf16:{LLAMA}", f"bf16:{LLAMA}:4096", "bf16:bf16:16:4:256"],
        [f"fp8:{LLAMA}", f"int8:{LLAMA}", f"int4:{LLAMA}", f"int4_channel:{LLAMA}"],
    ],
)
def test_kernels_compile_for_an_h200(cases: list[str], tmp_path: Path) -> None:
    """With no GPU there: within its registers, but for a few words, and its shared memory."""
    environment = {name: of for name, of in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-m", "tests.engine.execution.compiled", *cases]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {case for case, *_ in lines} == set(cases)
    for case, name, _, stack, shared in lines:
        assert int(stack) <= 256, (case, name, stack)
        assert int(shared) <= SHARED_BYTES, (case, name, shared)
