"""The page in a real browser: what a user does, and that nothing complains."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine import units
from sim.app.controls import TIMES
from sim.replay import replay
from sim.scenario import load_scenario, scenario_of
from tests.commands import Run
from tests.sim.app.conftest import PATIENCE_MS, serving

WIDTHS = (1280, 400)
GOOD = "arrival_s,prompt_tokens,output_tokens\n" + "".join(
    f"{number / 4},{100 + number},{10 + number % 7}\n" for number in range(50)
)


class Visit:
    """A browser's page, and what it complained of."""

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.url = url
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._see)

    def open(self) -> None:
        """Load it and wait for the first figures."""
        self.page.goto(self.url)
        self.wait_for("#trace-numbers", "2,000 requests")

    def choose(self, menu: str, option: str) -> None:
        self.page.click(f"#set-{menu}")
        self.page.get_by_role("option", name=option, exact=True).click()

    def slide(self, name: str, key: str, times: int = 1) -> None:
        handle = self.page.locator(f"#set-{name} [role=slider]")
        handle.focus()
        for _ in range(times):
            handle.press(key)

    def type(self, name: str, text: str) -> None:
        self.page.fill(f"#set-{name}", text)
        self.page.press(f"#set-{name}", "Enter")

    def wait_for(self, selector: str, text: str) -> None:
        self.page.locator(selector, has_text=text).first.wait_for()

    def upload(self, kind: str, name: str, content: bytes) -> None:
        with self.page.expect_file_chooser() as chosen:
            self.page.click(f"#upload-{kind}")
        chosen.value.set_files({"name": name, "mimeType": "text/plain", "buffer": content})

    def download(self, button: str, to: Path) -> Path:
        with self.page.expect_download() as coming:
            self.page.click(f"#{button}")
        path = to / coming.value.suggested_filename
        coming.value.save_as(path)
        return path

    def cards(self) -> dict[str, str]:
        return {
            card.locator(".label").inner_text(): card.locator(".value").inner_text()
            for card in self.page.locator("#cards .card").all()
        }

    def figures(self) -> dict[str, list[str]]:
        """The table: heading -> a text for each run."""
        rows = self.page.locator("#comparison tbody tr").all()
        return {
            row.locator("th").inner_text(): [
                cell.inner_text().split("\n")[0] for cell in row.locator("td").all()
            ]
            for row in rows
        }

    def curves(self, picture: str) -> list[str]:
        """Names of a picture's lines."""
        script = f"document.querySelector('#picture-{picture} .js-plotly-plot').data.map(t=>t.name)"
        return self.page.evaluate(script)

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _see(self, request: Any) -> None:
        if not request.url.startswith((self.url.split("?")[0], "data:", "blob:")):
            self.elsewhere.append(request.url)


@contextmanager
def visiting(browser: Any, server: Any, width: int = 1280) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": width, "height": 900})
    url = server.url.replace("0.0.0.0", "127.0.0.1")
    visit = Visit(context.new_page(), url)
    try:
        yield visit
        assert visit.complaints == []
        assert visit.elsewhere == []
    finally:
        context.close()


@pytest.fixture
def visit(browser: Any, app: Any) -> Iterator[Visit]:
    with visiting(browser, app) as made:
        made.open()
        yield made


def expected(**settings: Any) -> dict[str, Any]:
    return replay(scenario_of(settings), keep_requests=False, keep_segments=False).summary


def flat(text: str) -> str:
    return " ".join(text.split())


def test_it_shows_the_run_of_the_defaults_then_of_every_change(visit: Visit):
    summary = expected()
    cards = {label: flat(text) for label, text in visit.cards().items()}
    assert cards["P99 TTFT"] == units.seconds(summary["latency"]["ttft_s"]["p99"])
    assert cards["Throughput"] == units.amount(summary["throughput"]["requests_per_s"], "req/s")
    assert visit.page.locator("#heading").inner_text() == f"llama-3.1-8b on 1 {TIMES} h200"
    assert visit.page.locator(".unmeasured").is_visible()

    visit.slide("replicas", "ArrowRight", 2)
    visit.wait_for("#heading", f"3 {TIMES} h200")
    visit.choose("kv_dtype", "fp8")
    visit.wait_for("#setting", "kv-fp8")
    visit.type("slo_ttft", "12")
    visit.wait_for("#answer", "met their objectives")
    profile = "analytic:h200/llama-3.1-8b/tp1/w-bf16/kv-fp8"
    summary = expected(profile=profile, cluster={"replicas": 3}, slo={"ttft_s": 0.012})
    found = visit.figures()
    assert found["TTFT, P99"] == [units.seconds(summary["latency"]["ttft_s"]["p99"])]
    assert found["Within SLO"] == [units.share(summary["goodput"]["share"])]
    assert visit.page.locator("#picture-ttft").get_by_text("SLO 12 ms").is_visible()


def test_pinned_runs_stand_beside_the_one_shown(visit: Visit):
    before = visit.figures()
    visit.page.click("#pin")
    visit.wait_for("#pins button", "A")
    visit.slide("rate", "End")
    visit.wait_for("#comparison", f"{TIMES} 128")
    after = visit.figures()
    assert after["Rate"] == [f"{TIMES} 128", f"{TIMES} 1"]
    assert after["TTFT, P99"][1] == before["TTFT, P99"][0]
    assert after["TTFT, P99"][0] != before["TTFT, P99"][0]
    assert set(visit.curves("ttft")) >= {"now", "A"}
    assert set(visit.curves("kv_cache")) >= {"now", "A"}
    visit.choose("model", "llama-3.1-405b")
    visit.wait_for("#error", "llama-3.1-405b (bf16, tp 1) does not fit")
    assert visit.page.locator("#pin").is_disabled()
    assert visit.figures() == after
    visit.choose("model", "llama-3.1-8b")
    visit.page.locator("#error:empty").wait_for(state="attached")
    visit.page.click("#pins button")
    visit.page.locator("#pins button").wait_for(state="detached")
    assert len(visit.figures()["Throughput"]) == 1
    assert "A" not in visit.curves("ttft")


def test_a_long_run_shows_how_far_it_is_and_can_be_cancelled(browser: Any, long_trace: Path):
    with serving(traces=(str(long_trace),)) as server, visiting(browser, server) as visit:
        visit.page.goto(visit.url)
        visit.choose("trace", "sample:chat")
        visit.wait_for("#trace-numbers", "2,000 requests")
        answer = visit.page.locator("#answer").inner_text()
        visit.choose("trace", str(long_trace))
        visit.wait_for("#status", "of 250,000 requests have arrived")
        assert visit.page.locator("#progress").is_visible()
        visit.page.click("#cancel")
        visit.wait_for("#status", "Cancelled")
        assert visit.page.locator("#progress").is_hidden()
        assert visit.page.locator("#cancel").is_disabled()
        assert visit.page.locator("#answer").inner_text() == answer
        visit.choose("trace", "sample:agentic")
        visit.page.locator("#answer").filter(has_not_text=answer).wait_for()
        visit.page.locator("#status:empty").wait_for(state="attached")


def traces_of(visit: Visit, *expected: str) -> list[str]:
    visit.page.click("#set-trace")
    options = visit.page.get_by_role("option")
    for trace in ("sample:agentic", "sample:chat", *expected):  # the menu fills while it opens
        options.filter(has_text=trace).wait_for()
    texts = [text.strip() for text in options.all_inner_texts()]
    visit.page.keyboard.press("Escape")
    return texts


def test_bad_uploads_are_said_in_a_line_and_good_ones_replayed(visit: Visit, tmp_path: Path):
    bad = GOOD + "x,1,1\n"
    visit.upload("trace", "../../bad.csv", bad.encode())
    visit.wait_for("#upload-said .bad", "bad.csv:52: arrival_s is 'x'")
    visit.upload("trace", "huge.csv", b"x" * (2**20 + 1))
    visit.wait_for("#upload-said .bad", "huge.csv: is larger than the 1 MiB")
    visit.upload("trace", "empty.csv", b"")
    visit.wait_for("#upload-said .bad", "empty.csv: is empty")
    visit.upload("trace", "<b>.parquet", b"PAR1 no parquet")
    visit.wait_for("#upload-said .bad", "b_.parquet: cannot be read")
    assert visit.figures()["Throughput"]
    visit.upload("trace", "mine.csv", GOOD.encode())
    visit.wait_for("#trace-numbers", "50 requests")
    assert "mine.csv" in visit.page.locator("#set-trace").inner_text()
    (tmp_path / "mine.csv").write_text(GOOD)
    summary = expected(trace={"path": str(tmp_path / "mine.csv")})
    ttft = summary["latency"]["ttft_s"]["p99"]
    assert visit.figures()["TTFT, P99"] == [units.seconds(ttft)]
    lengths = "prompt_tokens,output_tokens\n" + "100,10\n" * 30
    visit.upload("trace", "lengths.csv", lengths.encode())
    visit.wait_for("#error", "rate_per_s")
    visit.type("trace_rate", "5")
    visit.wait_for("#trace-numbers", "30 requests")
    visit.page.locator("#error:empty").wait_for(state="attached")


def test_a_scenario_replays_to_the_same_numbers_and_report(
    visit: Visit, tmp_path: Path, kvcast: Run
):
    visit.upload("trace", "mine.csv", GOOD.encode())
    visit.wait_for("#trace-numbers", "50 requests")
    visit.slide("rate", "ArrowRight", 4)
    visit.slide("max_num_seqs", "ArrowRight", 3)
    visit.slide("cache_tokens", "ArrowRight", 1)
    visit.slide("replicas", "ArrowRight", 1)
    visit.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    visit.choose("order", "shortest-job")
    field = visit.page.get_by_label("prompt weight")
    field.fill("0.02")
    field.press("Enter")
    visit.choose("router", "least-tokens")
    visit.choose("eviction", "s3fifo")
    visit.type("slo_tpot", "20")
    visit.page.click("#run")
    visit.wait_for("#answer", "2 GPUs in 2 replicas")
    visit.wait_for("#answer", "met their objectives")
    path = visit.download("scenario", tmp_path)
    report = visit.download("report", tmp_path)
    (tmp_path / "mine.csv").write_text(GOOD)
    assert path.name == "scenario.yaml"
    scenario = load_scenario(path)
    assert scenario.scheduler.order == "shortest-job:prompt_weight=0.02"
    assert scenario.scheduler.max_num_seqs == 4
    assert (scenario.cluster.replicas, scenario.cluster.router) == (2, "least-tokens")
    assert scenario.cache.eviction == "s3fifo"
    assert scenario.trace.path == "mine.csv"
    code, _, _ = kvcast("replay", "scenario.yaml", "--out", "out")
    assert code == 0
    assert report.read_bytes() == (tmp_path / "out" / "report.html").read_bytes()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    found = visit.figures()
    assert found["TTFT, P99"] == [units.seconds(summary["latency"]["ttft_s"]["p99"])]
    assert found["End to end, P99"] == [units.seconds(summary["latency"]["e2e_s"]["p99"])]
    assert found["Throughput"] == [units.amount(summary["throughput"]["requests_per_s"], "req/s")]


def test_nobody_sees_the_runs_and_uploads_of_others(browser: Any, app: Any, visit: Visit):
    visit.page.click("#pin")
    visit.upload("trace", "private.csv", GOOD.encode())
    visit.wait_for("#trace-numbers", "50 requests")
    with visiting(browser, app) as other:
        other.open()
        assert "private.csv" in traces_of(visit, "private.csv")
        assert "private.csv" not in traces_of(other)
        assert other.page.locator("#pins button").count() == 0
        key = visit.page.evaluate("document.getElementById('token').dataset.page")
        assert key != other.page.evaluate("document.getElementById('token').dataset.page")


def test_a_plan_is_opened_and_the_run_of_now_lies_in_it(visit: Visit, finished_plan: Path):
    assert visit.page.locator("#plan-panel").is_hidden()
    visit.upload("plan", "plan.json", b'{"version": 1}')
    visit.wait_for("#plan-said .bad", "plan.json: is no plan")
    visit.upload("plan", "plan.json", finished_plan.read_bytes())
    visit.wait_for("#plan-said", "is the cheapest that meets p99 ttft <= 300ms")
    assert visit.page.locator("#plan-panel").is_visible()
    for picture in ("plan-cost", "plan-user"):
        visit.page.locator(f"#picture-{picture} .scatterlayer").wait_for()
        assert {"front", "winner", "run of now"} <= set(visit.curves(picture))
    visit.page.click("#try-winner")
    winner = json.loads(finished_plan.read_text())["winner"]
    visit.wait_for("#plan-said .bad", "for which this page has no control")
    full = {**winner["scenario"]["trace"], "operations": []}
    winner["scenario"] = {**winner["scenario"], "trace": full}
    plan = {**json.loads(finished_plan.read_text()), "winner": winner}
    visit.upload("plan", "plan.json", json.dumps(plan).encode())
    visit.wait_for("#plan-said", "is the cheapest")
    visit.page.click("#try-winner")
    visit.wait_for("#heading", f"qwen3-8b on {winner['gpus']} {TIMES} {winner['gpu']}")


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_the_screen(browser: Any, app: Any, width: int):
    with visiting(browser, app, width) as visit:
        visit.page.goto(visit.url)
        visit.page.locator("#cards .card").first.wait_for()
        visit.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        visit.choose("trace", "sample:agentic")
        visit.wait_for("#trace-numbers", "requests")
        visit.page.click("#pin")
        visit.wait_for("#pins button", "A")
        visit.choose("router", "sglang")
        visit.page.get_by_label("max tree tokens").wait_for()
        wide = visit.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
        for selector in (".card .value", ".panel h3", ".buttons button", ".control"):
            for one in visit.page.locator(selector).all():
                box = one.bounding_box()
                assert box is None or (box["x"] >= 0 and box["x"] + box["width"] <= width + 1)


def test_every_control_has_a_name_and_is_reached_by_keyboard(visit: Visit):
    page = visit.page
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    for name in ("Rate", "Replicas", "KV cache", "Sequences at once", "Tokens a step"):
        assert page.get_by_role("slider", name=name, exact=True).count() == 1
    text = page.get_by_role("slider", name="Replicas").get_attribute("aria-valuetext")
    assert text == "1 replica"
    for name in ("First token (TTFT)", "End to end", "Price of a GPU"):
        assert page.get_by_label(name, exact=True).count() == 1
    for name in ("Trace", "Profile", "GPU", "Model", "KV dtype", "Order of service", "Router"):
        assert page.get_by_role("button", name=re.compile(f"^{name}")).count() >= 1
    page.locator("#set-rate [role=slider]").focus()
    focused: list[str] = []
    for _ in range(50):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.id"))
    for one in ("set-kv_dtype", "set-preset", "set-slo_e2e", "set-chunking", "run", "pin"):
        assert one in focused


def test_another_address_wants_the_token(browser: Any):
    token = "a token that nobody guesses"
    with serving(host="0.0.0.0", token=token) as server:
        bare = server.url.split("?")[0].replace("0.0.0.0", "127.0.0.1")
        context = browser.new_context()
        page = context.new_page()
        answer = page.goto(bare)
        assert answer.status == 401
        assert "needs the token" in page.inner_text("body")
        assert page.goto(f"{bare}?token=wrong").status == 401
        assert page.goto(f"{bare}_dash-layout").status == 401
        context.close()
        with visiting(browser, server) as visit:
            visit.url = f"{bare}?token={token.replace(' ', '%20')}"
            visit.page.goto(visit.url)
            visit.page.locator("#cards .card").first.wait_for()
            assert "token" not in visit.page.url
            assert token not in visit.page.content()


def test_a_change_is_soon_answered(visit: Visit):
    """Says how long it takes; docs/app.md has what was measured."""
    visit.page.evaluate(
        """() => {
          const picture = document.querySelector('#picture-ttft .js-plotly-plot');
          window.began = []; window.ended = [];
          picture.on('plotly_afterplot', () => window.ended.push(performance.now()));
          document.querySelector('#set-replicas').addEventListener(
            'keydown', () => window.began.push(performance.now()), true);
        }"""
    )
    for count in range(2, 5):
        visit.slide("replicas", "ArrowRight")
        visit.wait_for("#heading", f"{count} {TIMES} h200")
        time.sleep(0.3)
    took_s = visit.page.evaluate(
        "window.began.map(b => Math.min(...window.ended.filter(e => e > b)) - b)"
    )
    print("from a key to the new picture, ms:", [round(one) for one in took_s])
    assert len(took_s) == 3
