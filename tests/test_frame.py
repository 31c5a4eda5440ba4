"""The frame around the packages: what is imported when, make, versions, portability."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("traces", "engine", "calibration", "sim")
EXTRAS = {"dash", "optuna", "ray"}
"""Imported by modules that serve an optional extra; absent from a base installation."""

IMPORT_ALL_OF_SIM = f"""
import importlib, json, pkgutil, sys
import sim
for module in pkgutil.walk_packages(sim.__path__, "sim."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in {EXTRAS}:
            raise
print(json.dumps(sorted(sys.modules)))
"""


def modules_after(program: str) -> set[str]:
    """What `program`, run by a fresh interpreter, prints as JSON: the names in its sys.modules."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("heavy", ["torch", "plotly", "polars"])
def test_import_sim_is_light(heavy):
    program = "import json, sys, sim; print(json.dumps(sorted(sys.modules)))"
    assert heavy not in modules_after(program)


def test_no_module_of_the_simulator_imports_torch():
    assert "torch" not in modules_after(IMPORT_ALL_OF_SIM)


@pytest.mark.parametrize(
    "target",
    ["run", "test", "check", "bench", "compile", "test-compiled", "clean", "help"],
)
def test_make_has_and_explains_the_target(target):
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:[^\n]* ## \S", makefile, re.MULTILINE)


def test_pre_commit_runs_the_commands_of_make_check():
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe is not None
    checks = re.findall(r"\$\(BIN\)/(.+)", recipe[1])
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"].removeprefix(".venv/bin/") for hook in hooks] == checks


def test_constraints_pin_one_version_of_each_dependency():
    lines = (ROOT / ".constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", pin) for pin in pins)
    names = [re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() for pin in pins]
    assert len(names) == len(set(names))
    required = {re.match(r"[a-z-]+", requirement)[0] for requirement in project()["dependencies"]}
    assert required <= set(names)


def test_installed_version_is_the_projects():
    try:
        installed = importlib.metadata.version("kvcast")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("kvcast is not installed; the tests run on the source tree")
    assert project()["version"] == installed


def test_no_text_names_a_machines_own_paths():
    own = re.compile(r"(?<![\w.~-])/" + r"(?:work|root|home)/")
    suffixes = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".ipynb", ".html", ".css", ".js"}
    folders = (*PACKAGES, "tests", "benchmarks", "docs", "notebooks", ".ci", ".github")
    files = [file for file in ROOT.iterdir() if file.is_file()]
    files += [file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file()]
    faults = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in files
        if (file.suffix in suffixes or file.parent.name == ".ci" or file.name == "Makefile")
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if own.search(line)
    ]
    assert faults == []
