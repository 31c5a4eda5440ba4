"""GPUs by their data sheets and models by their config.json, each datum with its source."""

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.shapes import ModelShape
from traces.errors import ConfigError


class Gpu(BaseModel):
    """One GPU of one form factor, as `calibration/data/gpus.yaml` has it. FLOPs are dense."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    aliases: tuple[str, ...] = ()
    form: str
    memory_bytes: int = Field(gt=0)
    """What a program sees (`total_memory`)."""
    memory_bytes_per_s: float = Field(gt=0)
    bf16_flops_per_s: float = Field(gt=0)
    fp8_flops_per_s: float | None = Field(default=None, gt=0)
    int8_ops_per_s: float | None = Field(default=None, gt=0)
    interconnect: Literal["switch", "mesh", "pcie"]
    interconnect_bytes_per_s: float = Field(gt=0)
    """Out of one GPU, in one direction; of a mesh, all seven links together."""
    interconnect_latency_s: float = Field(ge=0)
    tdp_w: float = Field(gt=0)
    idle_w: float | None = Field(default=None, ge=0)
    """Drawn while a serving engine holds the memory and no step runs; none: no reading known."""
    sources: tuple[tuple[str, str], ...] = ()
    """Field and where its value is from, for each field given as `{value, source}`."""

    @model_validator(mode="before")
    @classmethod
    def _split_sources(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        plain: dict[str, Any] = {}
        sources: list[tuple[str, str]] = []
        for field, datum in cast(dict[str, Any], data).items():
            if isinstance(datum, dict):
                entry = cast(dict[str, Any], datum)
                if set(entry) != {"value", "source"} or not str(entry["source"]).strip():
                    raise ValueError(f"{field}: expected a value and its source, got {entry}")
                plain[field] = entry["value"]
                sources.append((field, str(entry["source"])))
            else:
                plain[field] = datum
        if sources:
            plain["sources"] = tuple(sources)
        return plain

    def source(self, field: str) -> str:
        """Where a field's value is from; empty for a GPU that was stated without sources."""
        return dict(self.sources).get(field, "")

    def peak_flops_per_s(self, weight_dtype: str) -> float:
        """Dense matrix FLOPs for weights of a dtype.

        8-bit weights use 8-bit tensor cores where the GPU has them (activations quantised too);
        4-bit ones are expanded to 16 bits before they are multiplied.
        """
        if weight_dtype == "fp8" and self.fp8_flops_per_s:
            return self.fp8_flops_per_s
        if weight_dtype == "int8" and self.int8_ops_per_s:
            return self.int8_ops_per_s
        return self.bf16_flops_per_s


class ModelCard(BaseModel):
    """A published model: the fields of its config.json and the number of its parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(min_length=1)
    """Address of the config.json that all fields are from."""
    parameters: int = Field(gt=0)
    aliases: tuple[str, ...] = ()
    config: Mapping[str, Any]


def gpus() -> tuple[Gpu, ...]:
    """Every GPU of the data file, in its order."""
    return tuple(_gpus().values())


def model_cards() -> dict[str, ModelCard]:
    """Every model of the data file by its name."""
    return dict(_cards())


def gpu(name: str) -> Gpu:
    """Look a GPU up by name or alias, in any case (`H100`, `rtx4090`, `NVIDIA A100-SXM4-80GB`).

    Raises:
        ConfigError: for an unknown name; it says which known ones are nearest.
    """
    known = _gpus()
    index = {alias: one for one in known.values() for alias in (one.name, *one.aliases)}
    wanted = _plain(name)
    if wanted in index:
        return index[wanted]
    raise ConfigError(_unknown("gpu", name, wanted, index, known))


def model(name: str | Path) -> ModelShape:
    """Look a model up by name, or read the config.json (or its folder) that `name` is the path of.

    Hugging Face names work too: `meta-llama/Llama-3.1-8B-Instruct` is `llama-3.1-8b`.

    Raises:
        ConfigError: for a name that is neither known (it says which are nearest) nor a path, and
            for a config.json that ModelShape.from_hf_config refuses.
    """
    known = _cards()
    index = {alias: key for key, card in known.items() for alias in (key, *card.aliases)}
    wanted = _plain(str(name).rsplit("/", 1)[-1])
    wanted = wanted.removeprefix("meta-").removesuffix("-instruct")
    if isinstance(name, str) and wanted in index and not name.startswith((".", "/")):
        key = index[wanted]
        return ModelShape.from_hf_config(known[key].config, key)
    if Path(name).exists():
        return ModelShape.from_hf_config(Path(name))
    raise ConfigError(_unknown("model", str(name), wanted, index, known))


def _plain(name: str) -> str:
    plain = name.strip().lower().replace(" ", "-").replace("_", "-")
    return plain.removeprefix("nvidia-").removeprefix("amd-")


def _unknown(what: str, name: str, wanted: str, index: Iterable[str], known: Iterable[str]) -> str:
    near = difflib.get_close_matches(wanted, list(index), n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{what} {name!r} is unknown; {hint}known: {', '.join(known)}"


def _read(file: str) -> dict[str, dict[str, Any]]:
    text = (files("calibration") / "data" / file).read_text(encoding="utf-8")
    return yaml.safe_load(text)


@cache
def _gpus() -> dict[str, Gpu]:
    try:
        return {name: Gpu(name=name, **fields) for name, fields in _read("gpus.yaml").items()}
    except ValidationError as error:
        raise ConfigError(f"calibration/data/gpus.yaml: {error.errors()[0]}") from error


@cache
def _cards() -> dict[str, ModelCard]:
    try:
        return {name: ModelCard(**fields) for name, fields in _read("models.yaml").items()}
    except ValidationError as error:
        raise ConfigError(f"calibration/data/models.yaml: {error.errors()[0]}") from error
