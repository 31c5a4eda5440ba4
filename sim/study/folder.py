"""A study in a folder: page, numbers, settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from engine.atomic import check_replaceable, replacing_folder
from sim.study.page import page
from sim.study.study import Study
from traces.settings import to_yaml

PAGE: Final = "cache.html"
NUMBERS: Final = "cache.json"
SETTINGS: Final = "cache.yaml"
FILES: Final = frozenset({PAGE, NUMBERS, SETTINGS})


def check_folder(folder: Path) -> None:
    """Only an earlier study is ever replaced; raises ConfigError for anything else."""
    check_replaceable(folder, FILES, FILES)


def write_folder(study: Study, folder: Path) -> None:
    """Write everything, whole or not at all; the same study gives the same bytes."""
    check_folder(folder)
    with replacing_folder(folder) as part:
        (part / PAGE).write_text(page(study), encoding="utf-8")
        text = json.dumps(study.as_json(), indent=2, allow_nan=False)
        (part / NUMBERS).write_text(text + "\n", encoding="utf-8")
        (part / SETTINGS).write_text(to_yaml(study.settings), encoding="utf-8")
