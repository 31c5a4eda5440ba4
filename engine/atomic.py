"""A file or a folder is there whole or not at all."""

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from traces.errors import ConfigError


@contextmanager
def replacing(path: Path) -> Generator[IO[bytes]]:
    """Write beside `path`, then rename onto it; on any exception `path` stays as it was."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            yield file
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_folder(folder: Path) -> Generator[Path]:
    """A folder to write in, which takes the place of `folder` at the end.

    On any exception nothing is left behind, and an earlier `folder` stays as it was. Ask
    `check_replaceable` first.

    Raises:
        ConfigError: for an OSError, here or in the block.
    """
    target = folder.resolve()
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    new = [parent for parent in part.parents if not parent.exists()]
    try:
        part.mkdir(parents=True)
        yield part
        _replace(target, part)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):
            for parent in new:
                parent.rmdir()  # as long as they are empty


def check_replaceable(
    folder: Path, files: frozenset[str], marks: frozenset[str], what: str = "run"
) -> None:
    """Only what kvcast wrote is ever replaced: a stray file may be somebody's work.

    Args:
        folder: new, empty, or an earlier run's.
        files: names that an earlier run can have left.
        marks: names that every earlier run has left.
        what: it is called in errors.

    Raises:
        ConfigError: it is not.
    """
    try:
        held = {path.name for path in folder.iterdir()} if folder.exists() else set[str]()
    except NotADirectoryError:
        raise ConfigError(f"{folder}: is a file; expected a folder to write") from None
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read: {error.strerror or error}") from None
    foreign = sorted(name for name in held - files if not name.endswith(".part"))
    if not foreign and held and not marks <= held:
        foreign = sorted(held)
    if foreign:
        raise ConfigError(
            f"{folder}: holds {foreign[0]}, which is not from an earlier {what};"
            f" expected a new, empty or {what} folder"
        )


def _replace(folder: Path, part: Path) -> None:
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    try:
        part.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
