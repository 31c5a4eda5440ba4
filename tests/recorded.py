"""Where recorded cases of vLLM's scheduler lie: a dozen here, more in the shared data."""

import os
from pathlib import Path

HERE = Path(__file__).parent / "data" / "vllm-scheduler"
SHARED = (
    Path(os.environ.get("KVCAST_SHARED", Path(__file__).parents[2] / "shared"))
    / "vllm-scheduler"
    / "golden"
)


def _cases() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in (HERE, SHARED):
        for meta in sorted(root.glob("*/meta.json")):
            found[meta.parent.name] = meta.parent
    return found


_FOLDERS = _cases()
CASES = sorted(_FOLDERS)


def case_folder(case: str) -> Path:
    return _FOLDERS[case]
