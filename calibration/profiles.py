"""Profiles: which cost model and which capacity a replica has, and where its numbers are from."""

import re
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from calibration.arithmetic import Arithmetic
from calibration.copies import CopySettings
from calibration.cost_settings import LinearSettings, RooflineSettings
from calibration.costs import CostModel
from calibration.devices import StatedDevice
from calibration.evidence import Experiment, FitReport, Validity
from calibration.fitted import FittedSettings
from calibration.hardware import Gpu, gpu
from calibration.hardware import model as shape_of
from calibration.noise import Noise
from calibration.operator_profile import OperatorSettings
from calibration.power import MeasuredPower
from engine.capacity import Capacity, kv_capacity
from engine.kvformats import KV_DTYPES
from engine.shapes import WEIGHT_DTYPES, ModelShape
from traces.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

SPEC: Final = "analytic:<gpu>/<model>[/tp<N>][/w-<dtype>][/kv-<dtype>]"
"""Names a profile that no file holds, such as analytic:h200/llama-3.1-8b/tp2/kv-fp8; the model may
be a Hugging Face name or a path."""

OPTION: Final = re.compile(r"tp(?P<tp>[1-9]\d*)|w-(?P<weight>\w+)|kv-(?P<kv>\w+)")


class Profile(BaseModel):
    """A calibrated (or, until then, analytic) replica: a model on GPUs, its cost and capacity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    measured: bool
    """Whether the numbers were fitted to measurements of this model on this GPU."""
    provenance: str = Field(min_length=1)
    """Where the numbers are from, in words."""
    model: str
    gpu: str | None = None
    """A GPU of the data file; none for a device that is stated."""
    stated_device: StatedDevice | None = Field(default=None, alias="device")
    tp: int = Field(default=1, ge=1)
    weight_dtype: str = "bf16"
    kv_dtype: str = "bf16"
    cost: RooflineSettings | LinearSettings | FittedSettings | OperatorSettings = Field(
        default=RooflineSettings(), discriminator="kind"
    )
    copies: CopySettings = CopySettings()
    validity: Validity = Validity()
    noise: Noise | None = None
    """How steps scatter about the cost; none: not measured."""
    power: MeasuredPower | None = None
    """What a GPU drew; none: not measured."""
    fit: FitReport | None = None
    experiment: Experiment | None = None
    note: str = ""
    _folder: Path = PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        """Where the files lie that its own names; of a profile that no file holds, here."""
        return self._folder

    def within(self, folder: Path) -> Self:
        """This profile, its files in `folder`."""
        moved = self.model_copy()
        moved._folder = folder
        return moved

    @model_validator(mode="after")
    def _known(self) -> Self:
        for what, value, known in (
            ("weight_dtype", self.weight_dtype, WEIGHT_DTYPES),
            ("kv_dtype", self.kv_dtype, KV_DTYPES),
        ):
            if value not in known:
                raise ValueError(f"{what}: {value!r} is unknown; known: {', '.join(known)}")
        if (self.gpu is None) == (self.stated_device is None):
            raise ValueError("gpu: state the name of a known GPU, or a device section, not both")
        return self

    @property
    def shape(self) -> ModelShape:
        """The model's shape."""
        return shape_of(self.model)

    @property
    def device(self) -> Gpu | StatedDevice:
        """The GPU's data sheet, or what is stated of the device."""
        if self.stated_device is not None:
            return self.stated_device
        assert self.gpu is not None
        return gpu(self.gpu)

    @property
    def arithmetic(self) -> Arithmetic | None:
        """FLOPs and bytes of the model's steps; None where the device's ceilings are unknown."""
        device = self.device
        flops_per_s = device.peak_flops_per_s(self.weight_dtype)
        if flops_per_s is None or device.memory_bytes_per_s is None:
            return None
        return Arithmetic(
            shape=self.shape,
            tp=self.tp,
            weight_dtype=self.weight_dtype,
            kv_dtype=self.kv_dtype,
            peak_flops_per_s=flops_per_s,
            memory_bytes_per_s=device.memory_bytes_per_s,
        )

    @property
    def warning(self) -> str:
        """One line to print before results of this profile; empty for a measured one."""
        if self.measured:
            return ""
        return (
            f"profile {self.name}: NOT MEASURED: step times follow from data sheets and assumed"
            " efficiencies; treat absolute times as estimates"
        )

    def beyond(self, *, tokens: int = 0, sequences: int = 0, context_tokens: int = 0) -> str:
        """What of a step or run lies outside the fitted range, in one line; empty if nothing."""
        exceeded = list(self.validity.exceeded(tokens, sequences, context_tokens))
        if not exceeded:
            return ""
        return f"profile {self.name}: no measurement beyond {'; nor beyond '.join(exceeded)}"

    def require(
        self,
        *,
        model: str | None = None,
        weight_dtype: str | None = None,
        kv_dtype: str | None = None,
    ) -> None:
        """Check that a run of a model, with weights and KV cache as named, may use this profile.

        Raises:
            ConfigError: when the profile is of another model or dtype.
        """
        if model is not None and shape_of(model) != self.shape:
            raise ConfigError(f"profile {self.name}: is of model {self.model}; asked for {model}")
        for what, mine, asked in (
            ("weight_dtype", self.weight_dtype, weight_dtype),
            ("kv_dtype", self.kv_dtype, kv_dtype),
        ):
            if asked is not None and asked != mine:
                raise ConfigError(f"profile {self.name}: is of {what} {mine}; asked for {asked}")

    def cost_model(self, *, async_scheduling: bool = True) -> CostModel:
        """The cost model that the profile states.

        Args:
            async_scheduling: the CPU prepares a step while the one before runs; a profile that
                says itself whether they overlap overrides it.

        Raises:
            ConfigError: for an unknown GPU or model, or a model that `tp` does not split.
        """
        return self.cost.build(self, async_scheduling=async_scheduling)

    def drawn(self, random: "np.random.Generator") -> "Profile":
        """This profile with its cost's coefficients drawn once from their joint distribution.

        Raises:
            ConfigError: the profile states no intervals to draw from.
        """
        if not isinstance(self.cost, FittedSettings) or not self.cost.has_intervals:
            raise ConfigError(
                f"profile {self.name}: its cost ({self.cost.kind}) states no intervals to draw"
                " from; expected a fitted profile (kvcast profile list)"
            )
        return self.model_copy(update={"cost": self.cost.drawn(random)})

    def capacity(
        self,
        *,
        block_tokens: int = 16,
        memory_share: float = 0.9,
        max_batched_tokens: int = 2048,
        max_sequences: int = 256,
        graph_bytes: int = 0,
    ) -> Capacity:
        """KV blocks on each GPU; arguments and errors as engine.capacity.kv_capacity."""
        return kv_capacity(
            self.shape,
            self.device.memory_bytes,
            tp=self.tp,
            weight_dtype=self.weight_dtype,
            kv_dtype=self.kv_dtype,
            block_tokens=block_tokens,
            memory_share=memory_share,
            max_batched_tokens=max_batched_tokens,
            max_sequences=max_sequences,
            graph_bytes=graph_bytes,
        )


def shipped_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with the package."""
    folder = files("calibration") / "profiles"
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def load_profile(name_or_path: str | Path) -> Profile:
    """Load a profile: a shipped one by name, a YAML file by path, or an analytic one by SPEC.

    GPU, model and their fit are checked here, so that no later step fails on them.

    Raises:
        ConfigError: naming the profile or file, the field and the value.
    """
    name = str(name_or_path)
    if name.startswith("analytic:"):
        profile = _analytic(name)
    elif isinstance(name_or_path, str) and name.lower() in shipped_profiles():
        resource = files("calibration") / "profiles" / f"{name.lower()}.yaml"
        profile = _parse(resource.read_text(encoding="utf-8"), name)
    elif Path(name_or_path).is_file():
        profile = _parse(Path(name_or_path).read_text(encoding="utf-8"), name)
        profile = profile.within(Path(name_or_path).parent)
    else:
        near = get_close_matches(name.lower(), shipped_profiles(), 1)
        hint = f"did you mean {near[0]}? " if near else ""
        shipped = ", ".join(shipped_profiles())
        raise ConfigError(
            f"profile {name!r} is neither a file nor shipped; {hint}shipped: {shipped}; or {SPEC}"
        )
    try:
        profile.device.peak_flops_per_s(profile.weight_dtype)
        profile.shape.kv_bytes_per_token(profile.kv_dtype, profile.tp)
    except ConfigError as error:
        raise ConfigError(f"profile {name}: {error}") from error
    return profile


def _analytic(spec: str) -> Profile:
    gpu_name, *parts = spec.removeprefix("analytic:").split("/")
    options: dict[str, Any] = {}
    while parts and (match := OPTION.fullmatch(parts[-1])):
        options |= {key: text for key, text in match.groupdict().items() if text}
        parts.pop()
    if not gpu_name or not parts:
        raise ConfigError(f"profile {spec}: expected {SPEC}")
    try:
        return Profile(
            name=spec,
            measured=False,
            provenance="data sheets and config.json, with default efficiencies",
            gpu=gpu_name,
            model="/".join(parts),
            tp=int(options.get("tp", 1)),
            weight_dtype=options.get("weight", "bf16"),
            kv_dtype=options.get("kv", "bf16"),
        )
    except ValidationError as error:
        raise ConfigError(_first_error(spec, error)) from error


def _parse(text: str, where: str) -> Profile:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected a mapping, got {type(content).__name__}")
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        raise ConfigError(_first_error(where, error)) from error


def _first_error(where: str, error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(step) for step in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    value = first["input"]
    got = "" if isinstance(value, dict) or first["type"] == "value_error" else f", got {value!r}"
    return f"{where}: {place + ': ' if place else ''}{message}{got}"
