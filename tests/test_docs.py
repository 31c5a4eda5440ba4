"""What the documentation says of the repository is true: links lead somewhere, examples run."""

import re
import shlex
from pathlib import Path

import pytest

from sim.cli import app
from sim.scenario import load_scenario
from traces.pipeline import parse_operation

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    faults: list[str] = []
    for link in LINK.findall(page.read_text("utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            faults.append(link)
    assert faults == []


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page != "index.md" and f"({page})" not in index] == []


def test_the_python_of_the_simulators_page_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    import plotly.graph_objects as go

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(go.Figure, "show", lambda _: None)
    Path("run.yaml").write_text("trace: {operations: [{limit: {count: 50}}]}\n")
    text = (ROOT / "docs" / "simulator.md").read_text("utf-8")
    names: dict[str, object] = {}
    for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(example, names)
    assert re.findall(r"^\d+ 0\.\d+$", capsys.readouterr().out, re.MULTILINE)


def commands() -> list[list[str]]:
    """Every `kvcast ...` of the README, and make's run."""
    text = (ROOT / "README.md").read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8").replace("\\\n", " ")
    found = re.findall(r"`kvcast ([^`]+)`", text) + re.findall(r"/kvcast (replay .+)", makefile)
    return [shlex.split(one.replace("...", "")) for one in found]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_the_commands_of_the_readme_are_understood(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    from typer.core import TyperGroup
    from typer.main import get_command
    from typer.testing import CliRunner

    grouped = isinstance(get_command(app).commands[command[0]], TyperGroup)
    result = CliRunner().invoke(app, [*command[: 1 + grouped], "--help"])
    assert result.exit_code == 0
    if command[0] != "replay":
        return
    replay = get_command(app).commands["replay"]
    given = replay.make_context("replay", command[1:]).params
    settings = given["set_"] or ()
    for operation in given["op"] or ():
        parse_operation(operation)
    options = {name: given[name] for name in ("profile", "preset") if given[name]}
    load_scenario(None, settings, options)
