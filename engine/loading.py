"""A model on its device, ready to serve: where the torch-free half meets the other."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine.config import EngineSettings
from engine.llm import LLMEngine
from engine.roofline import Ceilings
from engine.shapes import ModelShape
from engine.work import Executor
from traces.errors import ConfigError


class TextStream(Protocol):
    """Text as its tokens come."""

    def push(self, ids: Iterable[int]) -> str:
        """The text that these tokens complete."""
        ...

    def finish(self) -> str:
        """What is left when no token follows."""
        ...


class Tokenizer(Protocol):
    """Text to token ids and back."""

    eos: frozenset[int]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        ...

    def stream(self, prompt: Sequence[int] = ()) -> TextStream:
        """Decodes an answer to `prompt` token by token."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its device."""

    executor: Executor
    settings: EngineSettings
    """With nothing left open."""
    shape: ModelShape | None = None
    """None: not known, and neither is the work of a step."""
    measure: Callable[[], Ceilings] | None = None
    """Measures the device's ceilings, which takes a second or so; None: it cannot be."""

    def engine(self) -> LLMEngine:
        """An engine at rest whose clock begins now; one after the other, not two at once."""
        context_tokens = self.shape.even_context_tokens if self.shape is not None else 0
        return LLMEngine(self.executor, self.settings, context_tokens=context_tokens)

    def close(self) -> None:
        """Give back memory, processes and files."""
        self.executor.close()


Load = Callable[[EngineSettings], LoadedModel]


def load_model(settings: EngineSettings, *, noise: bool = False) -> LoadedModel:
    """Load a model on the device that the settings name, and warm it up.

    Args:
        settings: what is left open is filled in; see the model's `settings`.
        noise: the KV cache holds random numbers at first, not zeros: for steps that read what
            nobody computed, see engine.execution.filling.

    Raises:
        ConfigError: for a model, a device or a size that cannot be had.
    """
    _check_exists(settings.model)
    try:
        from engine.execution.ceilings import measure_ceilings
        from engine.execution.executor import load_executor
        from engine.execution.filling import fill_with_noise
        from engine.execution.sizing import DTYPES
    except ModuleNotFoundError as missing:
        raise not_installed(missing) from None
    executor = load_executor(settings, fill_with_noise if noise else None)

    def measure() -> Ceilings:
        found = measure_ceilings(executor.runner.device, DTYPES[executor.settings.dtype])
        return Ceilings(found.flops_per_s, found.bytes_per_s)

    return LoadedModel(executor, executor.settings, executor.runner.model.shape, measure)


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a model.

    Raises:
        ConfigError: when there is none.
    """
    _check_exists(path)
    try:
        from engine.execution import tokenizer

        return tokenizer.load_tokenizer(path)
    except ModuleNotFoundError as missing:
        raise not_installed(missing) from None


def _check_exists(model: str) -> None:
    if not Path(model).exists():
        raise ConfigError(
            f"model: {model}: no such file or folder; expected a Hugging Face folder (config.json,"
            " *.safetensors, tokenizer.json) or a .gguf file"
        )


def not_installed(missing: ModuleNotFoundError) -> Exception:
    """What to say of a missing library; a missing module of our own is a fault, not a setting."""
    name = (missing.name or "").partition(".")[0]
    if name == "engine":
        return missing
    extra = "gguf" if name == "gguf" else "engine"
    return ConfigError(f"model: needs {name}, which is not there: pip install 'kvcast[{extra}]'")
