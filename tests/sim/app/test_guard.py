"""Who is let in to the page."""

from dataclasses import dataclass, field

import pytest

from sim.app.guard import SHORTEST_TOKEN, Guard, is_loopback, token_for
from traces.errors import ConfigError

TOKEN = "a token of some length"


@dataclass
class Asked:
    headers: dict[str, str]
    args: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)


def asked(host="127.0.0.1:8050", *, token=None, cookies=None, **headers) -> Asked:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Asked({"Host": host, **named}, {"token": token} if token else {}, cookies or {})


HERE = Guard("127.0.0.1", 8050, None)
OUT = Guard("0.0.0.0", 8050, TOKEN, ("kv.example.org",))


def status(guard: Guard, request: Asked) -> int:
    refused = guard.refusal(request)
    return 200 if refused is None else refused[1]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8050", "localhost:8050", "LOCALHOST", "127.8.9.1:8050", "[::1]:8050", "localhost"],
)
def test_this_machine_may_ask(host):
    assert status(HERE, asked(host)) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8050", "192.168.1.9:8050", "", "localhost.evil.example",
     "127.0.0.1.nip.io", "[::2]:8050", "[", "user@evil.example", "0.0.0.0:8050"],
)  # fmt: skip
def test_a_name_pointed_at_this_machine_may_not(host):
    assert status(HERE, asked(host)) == 403


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Origin": "http://127.0.0.1:8050"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"}, 403),
        ({"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors"}, 403),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}, 200),
        ({"Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors"}, 200),
    ],
)
def test_pages_of_other_sites_may_not_ask(headers, expected):
    assert status(HERE, asked(**headers)) == expected


def test_another_address_wants_the_token_once_then_the_cookie():
    shown = asked("10.0.0.7:8050", token=TOKEN)
    assert OUT.brings_token(shown)
    assert status(OUT, asked("10.0.0.7:8050")) == 401
    assert status(OUT, asked("10.0.0.7:8050", cookies={OUT.cookie: OUT.secret})) == 200
    assert status(OUT, asked("10.0.0.7:8050", cookies={OUT.cookie: TOKEN})) == 401
    assert not OUT.brings_token(asked("10.0.0.7:8050", token=TOKEN[:-1]))
    assert not OUT.brings_token(asked("10.0.0.7:8050", token="ä" * 20))
    assert not OUT.brings_token(asked("evil.example", token=TOKEN))
    assert not HERE.brings_token(asked(token=TOKEN))


def test_the_token_does_not_excuse_a_foreign_name():
    cookies = {OUT.cookie: OUT.secret}
    assert status(OUT, asked("evil.example", cookies=cookies)) == 403
    assert status(OUT, asked("kv.example.org", cookies=cookies)) == 200


def test_loopback_is_told_from_the_rest():
    assert all(map(is_loopback, ("127.0.0.1", "127.3.3.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))


def test_a_token_is_made_up_where_one_is_needed():
    assert token_for("127.0.0.1", None) is None
    assert token_for("127.0.0.1", TOKEN) == TOKEN
    made = token_for("0.0.0.0", None)
    assert made is not None and len(made) >= SHORTEST_TOKEN
    assert made != token_for("0.0.0.0", None)
    for bad in ("short", "", "x" * (SHORTEST_TOKEN - 1), "ä" * SHORTEST_TOKEN, "a\n" * 20):
        with pytest.raises(ConfigError, match="--token"):
            token_for("0.0.0.0", bad)
