"""The server as a client without a browser sees it, and its command line."""

import importlib.util
import json
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sim.app.bounds import MIB, Limits
from tests.commands import Run, refused, start
from tests.sim.app.conftest import serving

pytest.importorskip("dash")

GOOD = b"arrival_s,prompt_tokens,output_tokens\n0,10,5\n0.5,20,3\n1,10,1\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with serving(limits=Limits(upload_bytes=MIB)) as made:
        yield made


def asked(url: str, data: bytes | None = None, **headers: str) -> tuple[int, Any, bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, named), timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def sent(server: Any, content: bytes, page: str, name: str = "x.csv") -> dict[str, Any]:
    status, _, body = asked(
        f"{server.url}upload/trace", content, X_Kvcast_Page=page, X_Kvcast_Name=name
    )
    assert status == 200
    return json.loads(body)


def test_the_page_loads_nothing_from_elsewhere(server: Any):
    status, headers, body = asked(server.url)
    text = body.decode()
    assert status == 200
    loaded = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(loaded) > 5
    assert all(url.startswith("/") and not url.startswith("//") for url in loaded)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe-eval" not in policy and "http" not in policy
    assert headers["Cache-Control"] == "no-store"
    for url in loaded:
        assert asked(f"{server.url}{url[1:]}")[0] == 200


def test_it_is_no_debugger(server: Any):
    text = asked(server.url)[2].decode()
    config = json.loads(re.search(r"_dash-config[^>]*>(\{.*?\})<", text, re.DOTALL)[1])
    assert config["ui"] is False
    assert "hot_reload" not in config
    assert asked(f"{server.url}_mcp", b"{}", Content_Type="application/json")[0] == 405
    assert b"werkzeug" not in asked(f"{server.url}console")[2].lower()


def test_requests_under_other_names_and_from_other_sites_are_refused(server: Any):
    assert asked(server.url, Host="evil.example")[0] == 403
    assert asked(f"{server.url}_dash-layout", Host="evil.example")[0] == 403
    assert asked(f"{server.url}upload/trace", b"x", Origin="http://evil.example")[0] == 403
    assert asked(f"{server.url}_dash-layout", Sec_Fetch_Site="cross-site")[0] == 403


def test_uploads_go_to_their_page_alone(server: Any):
    page, other = server.pages.new(), server.pages.new()
    answer = sent(server, GOOD, page.token, "../../a%20b.csv")
    assert answer["name"] == "a b.csv"
    assert list(page.uploads) == [answer["key"]]
    assert not other.uploads
    (upload,) = page.uploads.values()
    assert upload.path.parent == page.folder
    assert upload.path.read_bytes() == GOOD
    assert "reload" in sent(server, GOOD, "no page")["error"]


def test_an_upload_that_is_too_large_or_no_trace_leaves_nothing(server: Any):
    page = server.pages.new()
    assert "larger than the 1 MiB" in sent(server, b"x" * (MIB + 1), page.token)["error"]
    assert sent(server, b"", page.token)["error"] == "x.csv: is empty"
    assert sent(server, GOOD + b"x,1,1\n", page.token)["error"].startswith("x.csv:5: arrival_s")
    assert sent(server, GOOD.splitlines()[0], page.token)["error"] == "x.csv: no requests"
    assert not list(page.folder.iterdir())
    assert not page.uploads


def test_a_page_keeps_few_uploads(server: Any):
    page = server.pages.new()
    keys = [sent(server, GOOD, page.token)["key"] for _ in range(6)]
    assert list(page.uploads) == keys[-4:]
    assert len(list(page.folder.iterdir())) == 4


def test_a_callback_of_unusual_size_is_refused(server: Any):
    body = b'{"output": "' + b"x" * (2 * MIB) + b'"}'
    status, _, _ = asked(
        f"{server.url}_dash-update-component", body, Content_Type="application/json"
    )
    assert status == 413


# ---- the command line


def test_a_port_in_use_is_one_line(kvcast: Run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert refused(kvcast("app", "--port", str(port))) == (
            f"--port {port}: is in use on 127.0.0.1; expected a free one, or 0 for any"
        )


def test_what_is_wrong_is_one_line(kvcast: Run, monkeypatch: pytest.MonkeyPatch):
    assert refused(kvcast("app", "--host", "no.such.host.invalid")).startswith("--host no.such")
    assert "--token" in refused(kvcast("app", "--token", "short"))
    assert "neither a file nor shipped" in refused(kvcast("app", "--profile", "nonsense"))
    Path("run.yaml").write_text("cluster: {max_queue: 3}\n")
    assert refused(kvcast("app", "run.yaml")) == (
        "the scenario: cluster.max_queue is 3, for which this page has no control"
    )
    Path("plan.json").write_text("{}")
    assert refused(kvcast("app", "--plan", "plan.json")).startswith("plan.json: is no plan")
    assert refused(kvcast("app", "--plan", "nowhere")).startswith("--plan nowhere: is no plan")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "sim.app_cli.find_spec", lambda name: None if name == "dash" else found(name)
    )
    assert refused(kvcast("app")) == (
        "kvcast app: the package dash is missing; pip install 'kvcast[app]'"
    )


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_is_and_ends_cleanly(tmp_path: Path, way: signal.Signals):
    server = start("app", "--host", "0.0.0.0", "--port", "0", folder=tmp_path)
    assert server.stdout is not None
    line = server.stdout.readline()
    found = re.search(r"http://0\.0\.0\.0:(\d+)/\?token=(\S{16,})", line)
    assert found, line
    assert asked(f"http://127.0.0.1:{found[1]}/")[0] == 401
    server.send_signal(way)
    out, err = server.communicate(timeout=60)
    assert (server.returncode, err) == (0, "")
    assert out.endswith("ended\n")
    assert not list(tmp_path.iterdir())
