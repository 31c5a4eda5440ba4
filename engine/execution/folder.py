"""A model as Hugging Face publishes it: a folder with config.json and *.safetensors."""

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.execution.weights import Part, Stored
from traces.errors import ConfigError

INDEX = "model.safetensors.index.json"


class ModelFolder:
    """Config and, once they are asked for, weights; a Checkpoint.

    Raises:
        ConfigError: for a folder without a config.json; later, for one without weights.
    """

    def __init__(self, path: Path) -> None:
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"{path}: no config.json; expected a Hugging Face folder (config.json,"
                " *.safetensors, tokenizer.json) or a .gguf file"
            )
        self.path = path
        self.config = read_object(path / "config.json")

    def tensors(self, wanted: Mapping[str, Part]) -> Iterator[Stored]:
        """See Checkpoint: file after file, each mapped into memory rather than read whole."""
        from safetensors import SafetensorError, safe_open

        for file in self._files:
            try:
                with safe_open(file, framework="pt", device="cpu") as tensors:
                    for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                        stored = tensors.get_slice(name)
                        yield Stored(name, tuple(stored.get_shape()), stored.__getitem__)
            except OSError as error:
                raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from error
            except SafetensorError as error:
                raise ConfigError(
                    f"{file}: is damaged or no safetensors file: {error}; fetch it again"
                ) from error

    def place(self, name: str) -> str:
        """See Checkpoint."""
        if self._file_of is not None:
            return str(self.path / self._file_of.get(name, INDEX))
        return str(self._files[0] if len(self._files) == 1 else self.path / "*.safetensors")

    @cached_property
    def _file_of(self) -> dict[str, str] | None:
        """The file of each tensor, by the index; None without one."""
        index = self.path / INDEX
        if not index.is_file():
            return None
        files = read_object(index).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
            raise ConfigError(f"{index}: has no weight_map from names of tensors to files")
        return files

    @cached_property
    def _files(self) -> list[Path]:
        """Those of the index, else model.safetensors, else every safetensors file."""
        if self._file_of is not None:
            return [self.path / file for file in sorted(set(self._file_of.values()))]
        one = self.path / "model.safetensors"
        files = [one] if one.is_file() else sorted(self.path.glob("*.safetensors"))
        if not files:
            raise ConfigError(f"{self.path}: no *.safetensors with the model's weights")
        return files


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; raises ConfigError when there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: expected a JSON object, got {type(content).__name__}")
    return content
