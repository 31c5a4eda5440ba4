"""What an unfinished measurement has found so far: kept beside its result, to go on from.

`NAME.part/` holds `experiment.yaml`, which says what is measured, and `visits.jsonl`, a line for
each visit as soon as it is done. A line that was cut off is dropped.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import yaml

from calibration.measuring.campaign import Visit
from calibration.measuring.design import Point
from calibration.measuring.measure import Step
from engine.atomic import replacing
from traces.errors import ConfigError

EXPERIMENT: Final = "experiment.yaml"
VISITS: Final = "visits.jsonl"


class Partial:
    """The folder of a measurement under way."""

    def __init__(self, folder: Path, experiment: Mapping[str, Any], fresh: bool | None) -> None:
        """Opens or makes it.

        Args:
            folder: its parent exists.
            experiment: nested mappings, as YAML holds them. A folder of another experiment is
                left alone.
            fresh: True: discard what is there; False: something must be there.

        Raises:
            ConfigError: another experiment's folder, saying where they differ; one that is not
                ours; nothing to go on from; a folder that cannot be written.
        """
        self.folder: Final = folder
        if fresh:
            self.remove()
        if fresh is False and not (folder / EXPERIMENT).exists():
            raise ConfigError(f"--resume: there is nothing to go on from: no {folder}")
        try:
            if (folder / EXPERIMENT).exists():
                self._check(experiment)
            else:
                self._begin(experiment)
            self.visits: list[Visit] = list(self._read())
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written: {error.strerror or error}") from None

    def append(self, visit: Visit) -> None:
        """Keep a visit."""
        self.visits.append(visit)
        line = json.dumps(_written(visit), allow_nan=False)
        with (self.folder / VISITS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def remove(self) -> None:
        """Nothing is left of it; a folder that is not ours is left alone."""
        if self.folder.is_dir() and not self._foreign():
            shutil.rmtree(self.folder)

    def _begin(self, experiment: Mapping[str, Any]) -> None:
        foreign = self._foreign() if self.folder.is_dir() else ""
        if foreign or self.folder.is_file():
            raise ConfigError(
                f"{self.folder}: holds {foreign or 'a file'}, which is not from an earlier"
                " calibration; move it away"
            )
        self.folder.mkdir(exist_ok=True)
        with replacing(self.folder / EXPERIMENT) as file:
            file.write(yaml.safe_dump(dict(experiment), sort_keys=False).encode())

    def _check(self, experiment: Mapping[str, Any]) -> None:
        try:
            kept = yaml.safe_load((self.folder / EXPERIMENT).read_text(encoding="utf-8"))
        except yaml.YAMLError:
            kept = None
        for name, before, now in _differences(kept, experiment):
            raise ConfigError(
                f"{self.folder}: is of a calibration with {name}: {before}, now it is {now};"
                " --fresh discards it"
            )

    def _foreign(self) -> str:
        """A file in the folder that is not ours; empty: there is none."""
        names = sorted(path.name for path in self.folder.iterdir())
        return next((name for name in names if name not in (EXPERIMENT, VISITS)), "")

    def _read(self) -> Iterator[Visit]:
        """The visits; cuts the file off behind the last whole line."""
        path = self.folder / VISITS
        if not path.exists():
            return
        whole = 0
        with path.open("rb") as file:
            for line in file:
                try:
                    visit = _visit(json.loads(line)) if line.endswith(b"\n") else None
                except (ValueError, TypeError, KeyError):  # cut off
                    visit = None
                if visit is None:
                    break
                yield visit
                whole += len(line)
        with path.open("r+b") as file:
            file.truncate(whole)


def _written(visit: Visit) -> dict[str, Any]:
    return asdict(visit) | {"point": list(visit.point)}


def _visit(line: dict[str, Any]) -> Visit:
    point = Point(*line.pop("point"))
    steps = tuple(Step(**step) for step in line.pop("steps"))
    return Visit(point=point, steps=steps, **line)


def _differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Names of what differs, with both values."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*now, *before)):
            inner = f"{name}.{key}" if name else str(key)
            yield from _differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield name or "experiment", before, now
