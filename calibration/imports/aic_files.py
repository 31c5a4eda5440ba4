"""Where AIConfigurator keeps its tables."""

import importlib.util
import re
from pathlib import Path
from typing import Final

from calibration.imports.measured import listed
from traces.errors import ConfigError

PACKAGE: Final = "aiconfigurator_core"
MILLISECOND: Final = 1e-3

GEMMS: Final = "gemm_perf"
CONTEXT: Final = "context_attention_perf"
GENERATION: Final = "generation_attention_perf"
ALL_REDUCE: Final = "custom_allreduce_perf"
NCCL: Final = "nccl_perf"
SUFFIXES: Final = (".parquet", ".csv", ".txt")


def installed(system: str) -> Path:
    """Folder of a system's tables (`h200_sxm`) in the installed package aiconfigurator-core.

    The package is found, not imported.

    Raises:
        ConfigError: when it is not installed, or has no such system.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError(f"{PACKAGE} is not installed; pip install aiconfigurator-core has it")
    systems = Path(spec.origin).parent / "systems" / "data"
    known = sorted(path.name for path in systems.glob("*") if path.is_dir())
    if system not in known:
        raise ConfigError(f"{systems}: has no system {system!r}; there are {listed(known)}")
    return systems / system


def candidates(folder: Path, table: str, framework: str) -> list[Path]:
    """Files of a table, oldest version first.

    They lie in `folder` itself, whatever follows the table's name, or in
    <kind>/<framework>/<version> (formerly <framework>/<version>). `framework` may be `*`.
    """
    flat = [path for path in folder.glob(f"{table}*") if path.suffix in SUFFIXES]
    if flat:
        return sorted(flat)
    owner = "nccl" if table == NCCL else framework
    patterns = (f"*/{owner}/*/{table}.*", f"{owner}/*/{table}.*")
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted((path for path in found if path.suffix in SUFFIXES), key=_by_version)


def located(folder: Path, table: str, framework: str, version: str | None = None) -> Path:
    """The one file of a table: of `version`, or of the newest.

    Raises:
        ConfigError: when there is none, or it is not clear which; it says what there is.
    """
    files = candidates(folder, table, framework)
    if not files:
        raise ConfigError(f"{folder}: has no {table} of {framework}")
    flat = files[0].parent == folder
    if flat and len(files) > 1:
        names = listed(path.name for path in files)
        raise ConfigError(f"{folder}: which {table} is meant? There are {names}; leave one")
    if flat or version is None:
        return files[-1]
    for path in files:
        if path.parent.name == version:
            return path
    known = listed(path.parent.name for path in files)
    raise ConfigError(f"{folder}: has no {table} of {framework} {version}; there are {known}")


def _by_version(path: Path) -> tuple[list[int], str]:
    return [int(number) for number in re.findall(r"\d+", path.parent.name)], str(path)
