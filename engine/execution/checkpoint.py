"""Opens what a user calls a model: a Hugging Face folder or a .gguf file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from engine.execution.weights import Checkpoint


class ModelFiles(Checkpoint, Protocol):
    """A model's config and weights."""

    @property
    def config(self) -> Mapping[str, Any]:
        """By the names of a Hugging Face config.json."""
        ...


def is_gguf(path: Path) -> bool:
    """Whether the model is one .gguf file rather than a folder."""
    return path.suffix.lower() == ".gguf"


def open_model(path: Path) -> ModelFiles:
    """The model at `path`.

    Raises:
        ConfigError: when its config cannot be read.
    """
    if is_gguf(path):
        from engine.execution.gguf import GgufFile

        return GgufFile(path)
    from engine.execution.folder import ModelFolder

    return ModelFolder(path)
