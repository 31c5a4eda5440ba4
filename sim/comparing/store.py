"""Figures that have been computed, by the key of their cell: what an interrupted run keeps."""

import json
from pathlib import Path
from typing import Protocol

from engine.atomic import replacing
from sim.comparing.cells import code_version
from sim.uncertainty import Figures
from traces.errors import ConfigError


class Store(Protocol):
    """Keeps figures."""

    def get(self, key: str) -> Figures | None:
        """The figures under a key, None if there are none."""
        ...

    def put(self, key: str, figures: Figures) -> None:
        """Keep figures under a key."""
        ...


class FolderStore:
    """A file a cell, in a folder a version: other versions' results are never read.

    Each file is written whole or not at all, so that several runs may share a store.
    """

    def __init__(self, folder: Path) -> None:
        """A store in `folder`, which need not exist yet."""
        self._folder = folder
        self._mine = folder / code_version()

    def get(self, key: str) -> Figures | None:
        """The figures under a key; None if there are none, or no whole ones."""
        try:
            found = json.loads(self._file(key).read_text(encoding="utf-8"))
            return found["figures"] if found["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, figures: Figures) -> None:
        """Write figures under a key; raises ConfigError where that cannot be."""
        content = json.dumps({"key": key, "figures": figures}, allow_nan=False)
        try:
            self._mine.mkdir(parents=True, exist_ok=True)
            with replacing(self._file(key)) as file:
                file.write(content.encode())
        except OSError as error:
            said = error.strerror or error
            raise ConfigError(f"{self._mine}: cannot be written: {said}") from None

    def of_others(self) -> str:
        """One line on results that another version wrote and this one ignores; empty if none."""
        others = {
            path.name: sum(1 for _ in path.glob("*.json"))
            for path in (sorted(self._folder.iterdir()) if self._folder.is_dir() else ())
            if path != self._mine and path.is_dir()
        }
        if not any(others.values()):
            return ""
        return (
            f"{self._folder}: {sum(others.values()):,} results of kvcast {', '.join(others)} are"
            f" ignored; this is {code_version()}"
        )

    def _file(self, key: str) -> Path:
        return self._mine / f"{key}.json"
