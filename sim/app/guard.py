"""Who may talk to the server: whoever this machine is, or brings the token."""

from __future__ import annotations

import hmac
import secrets
import socket
from collections.abc import Collection
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from traces.errors import ConfigError

SHORTEST_TOKEN: Final = 16

CROSS_SITE: Final = ("cross-site", "same-site")
"""What `Sec-Fetch-Site` says of a request that another site's page has made."""


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def token_for(host: str, stated: str | None) -> str | None:
    """The token of a server on `host`: as stated, made up where one is needed, or none.

    Raises:
        ConfigError: the stated one is too short to be one.
    """
    if stated is not None:
        if len(stated) < SHORTEST_TOKEN or not stated.isascii() or not stated.isprintable():
            raise ConfigError(
                f"--token: must have at least {SHORTEST_TOKEN} printable ASCII characters"
            )
        return stated
    return None if is_loopback(host) else secrets.token_urlsafe(24)


@dataclass(frozen=True, slots=True)
class Guard:
    """Looks at every request before anything else does."""

    host: str
    """That the server binds to."""
    port: int
    token: str | None
    names: Collection[str] = ()
    """Hosts that the server may be called, beside its address."""
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    """What a browser that has shown the token is given to show from then on."""

    @property
    def cookie(self) -> str:
        """Its name; browsers do not tell ports apart."""
        return f"kvcast-{self.port}"

    def refusal(self, request: Any) -> tuple[str, int] | None:
        """Why a Flask request is refused, and the status; None: it is welcome.

        A page elsewhere can send requests here through its visitor's browser. Under a name of its
        own that it has pointed at this machine (DNS rebinding) it is known by the Host header;
        under ours, by the Origin header or Sec-Fetch-Site.
        """
        if not self.knows_host(request.headers.get("Host", "")):
            return "This address is not one that kvcast app answers to.", 403
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("Host"):
            return "Requests from pages of other sites are not answered.", 403
        foreign = request.headers.get("Sec-Fetch-Site") in CROSS_SITE
        if foreign and request.headers.get("Sec-Fetch-Mode") != "navigate":
            return "Requests from pages of other sites are not answered.", 403
        if self.token is None or self._is(request.cookies.get(self.cookie), self.secret):
            return None
        return (
            "This page needs the token that kvcast app printed when it started:"
            " open the address that ends in ?token=...",
            401,
        )

    def brings_token(self, request: Any) -> bool:
        """Whether the address of a request, which is to a name of ours, holds the token."""
        shown = request.args.get("token")
        known = self.knows_host(request.headers.get("Host", ""))
        return self.token is not None and known and self._is(shown, self.token)

    def knows_host(self, stated: str) -> bool:
        """Whether a Host header names this server: by number, its own name, or localhost.

        A number cannot be pointed elsewhere; a loopback server answers to loopback numbers only.
        """
        try:
            host = urlsplit(f"//{stated}").hostname
        except ValueError:
            return False
        if host is None:
            return False
        if is_loopback(host):
            return True
        if is_loopback(self.host):
            return host in self.names
        try:
            ip_address(host)
        except ValueError:
            own = {self.host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
            return host in own or host in self.names
        return True

    @staticmethod
    def _is(shown: str | None, right: str) -> bool:
        return shown is not None and hmac.compare_digest(shown.encode(), right.encode())
