"""The server of the page: a Dash app behind a guard, on a socket of its own."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final
from urllib.parse import unquote

from dash import Dash, set_props
from flask import Flask, Response, jsonify, redirect, request
from werkzeug.exceptions import HTTPException
from werkzeug.serving import make_server

from sim.app.bounds import MIB, Limits
from sim.app.callbacks import register
from sim.app.guard import Guard, is_loopback
from sim.app.layout import page_layout
from sim.app.state import Page, Pages
from sim.app.stated import Choices, Offer
from sim.app.uploads import MOST_UPLOADS, Upload, shown_name, stored
from sim.report.stylesheet import CSS
from traces.errors import ConfigError, KvcastError

CALLBACK_BYTES: Final = MIB
"""Of a request that is no upload: all controls take a few kB."""
TIDY_S: Final = 60.0

INDEX: Final = f"""<!DOCTYPE html>
<html lang="en">
<head>
{{%metas%}}
<title>kvcast what-if</title>
{{%favicon%}}
<style>{CSS}</style>
{{%css%}}
</head>
<body>
{{%app_entry%}}
<div>{{%config%}}{{%scripts%}}{{%renderer%}}</div>
</body>
</html>
"""


class AppServer:
    """The page's server: listens as soon as it is made, answers while it serves."""

    def __init__(
        self,
        offered: Offer,
        *,
        host: str = "127.0.0.1",
        port: int = 8050,
        token: str | None = None,
        names: tuple[str, ...] = (),
        plan: Path | None = None,
        limits: Limits | None = None,
        starts: Choices | None = None,
    ) -> None:
        """Listen, and have a worker warm.

        Args:
            offered: traces and profiles to choose from.
            host: address to listen on.
            port: 0: any that is free.
            token: what a browser must show; None: nothing.
            names: other names of the server.
            plan: a plan.json that every page shows.
            limits: of workers and uploads.
            starts: where the controls of a page stand at first; None: at their defaults.

        Raises:
            ConfigError: the address cannot be bound, or is others' and has no token; the plan is
                none.
        """
        if token is None and not is_loopback(host):
            raise ConfigError(f"--host {host}: others can reach this address; expected a token")
        limits = limits or Limits()
        listening = _bound(host, port)
        self.port: int = listening.getsockname()[1]
        self.guard = Guard(host, self.port, token, names)
        try:
            self.pages = Pages(offered, limits, plan, starts)
        except BaseException:
            listening.close()
            raise
        self._stopped = Event()
        server = _application(self.pages, self.guard)
        self._serving: Any = make_server(
            host, self.port, server, threaded=True, fd=listening.detach()
        )
        self._serving.daemon_threads = True

    @property
    def url(self) -> str:
        """What to open in a browser."""
        host = f"[{self.guard.host}]" if ":" in self.guard.host else self.guard.host
        shown = f"?token={self.guard.token}" if self.guard.token else ""
        return f"http://{host}:{self.port}/{shown}"

    def serve(self) -> None:
        """Answer until `stop`, or an exception such as an interrupt."""
        Thread(target=self._tidy, daemon=True).start()
        try:
            self._serving.serve_forever()
        finally:
            self._stopped.set()
            self._serving.server_close()
            self.pages.close()

    def stop(self) -> None:
        """End `serve`, which runs in another thread."""
        self._serving.shutdown()

    def _tidy(self) -> None:
        while not self._stopped.wait(TIDY_S):
            self.pages.tidy()


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: there can be none at that address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, OverflowError):
        raise ConfigError(f"--host {host}: is no address of this machine") from None
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port {port}: is in use on {host}; expected a free one, or 0 for any"
            ) from None
        if error.errno == errno.EACCES:
            raise ConfigError(f"--port {port}: may not be used; expected 1024 or above") from None
        raise ConfigError(f"--host {host}: cannot be bound: {error.strerror}") from None
    return listening


def _application(pages: Pages, guard: Guard) -> Flask:
    for name in ("werkzeug", "dash"):
        logging.getLogger(name).setLevel(logging.ERROR)
    app = Dash(
        "kvcast",
        assets_folder=str(Path(__file__).parent / "assets"),
        index_string=INDEX,
        title="kvcast what-if",
        update_title="",
        serve_locally=True,
        suppress_callback_exceptions=True,
        on_error=_say,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    app.layout = lambda: page_layout(
        pages.new().token,
        pages.offered,
        pages.starts,
        upload_bytes=pages.limits.upload_bytes,
        plan=pages.plan is not None,
    )
    register(app, pages)
    server: Flask = app.server
    server.config["MAX_CONTENT_LENGTH"] = CALLBACK_BYTES
    policy = _content_policy(app)
    server.before_request(lambda: _admit(guard))
    server.after_request(partial(_sealed, policy))
    for kind, take in (("trace", _keep_trace), ("plan", _keep_plan)):
        view = _answering(partial(_take, pages, take))
        server.add_url_rule(f"/upload/{kind}", f"upload_{kind}", view, methods=["POST"])
    return server


def _say(error: Exception) -> None:
    """An error in a callback, on the page where it is the user's; else it is the programmer's."""
    if not isinstance(error, KvcastError):
        logging.getLogger("kvcast").error("callback failed", exc_info=error)
    said = (
        str(error) if isinstance(error, KvcastError) else "This did not work; see the server's log."
    )
    set_props("error", {"children": " ".join(said.split()), "className": "banner failed"})


def _content_policy(app: Dash) -> str:
    """What the page may load: nothing but this server's."""
    scripts = " ".join(app.csp_hashes())
    return (
        f"default-src 'self'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline';"
        " img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'"
    )


def _admit(guard: Guard) -> Any:
    """Nothing, for a request that is welcome; else the answer that it gets."""
    if guard.brings_token(request):
        answer: Any = redirect(request.path, 303)
        answer.set_cookie(guard.cookie, guard.secret, httponly=True, samesite="Strict")
        return answer
    refused = guard.refusal(request)
    if refused is None:
        return None
    text, status = refused
    return Response(text + "\n", status, mimetype="text/plain")


def _sealed(policy: str, response: Response) -> Response:
    headers = response.headers
    headers["Content-Security-Policy"] = policy
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "same-origin"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    if response.mimetype in ("text/html", "application/json"):
        headers["Cache-Control"] = "no-store"
    return response


def _answering(take: Callable[[], dict[str, Any]]) -> Callable[[], Any]:
    """A view that answers with what `take` gives, or with what is wrong in one line."""

    def view() -> Any:
        try:
            return jsonify(take())
        except HTTPException as error:
            return jsonify({"error": f"cannot be taken: {error.name.lower()}"})
        except KvcastError as error:
            return jsonify({"error": " ".join(str(error).split())})

    return view


def _take(pages: Pages, keep: Callable[[Pages, Page, str, Path], None]) -> dict[str, Any]:
    """Store what is uploaded, and have it read and kept for its page."""
    page = pages.page(request.headers.get("X-Kvcast-Page"))
    name = shown_name(unquote(request.headers.get("X-Kvcast-Name", "")))
    request.max_content_length = 2 * pages.limits.upload_bytes  # `stored` is exact
    try:
        path = stored(request.stream, page.folder, pages.limits.upload_bytes)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    try:
        keep(pages, page, name, path)
    except KvcastError as error:
        path.unlink(missing_ok=True)
        said = str(error)
        raise ConfigError(said if name in said else f"{name}: {said}") from None
    return {"key": f"upload:{path.name}", "name": name}


def _keep_trace(pages: Pages, page: Page, name: str, path: Path) -> None:
    described = pages.work(page, "describe", names={str(path): name}, path=str(path))
    upload = Upload(f"upload:{path.name}", name, path, described)
    with page.lock:
        page.described[str(path)] = described
        page.uploads[upload.key] = upload
        for surplus in list(page.uploads.values())[:-MOST_UPLOADS]:
            del page.uploads[surplus.key]
            page.described.pop(str(surplus.path), None)
            surplus.path.unlink(missing_ok=True)


def _keep_plan(pages: Pages, page: Page, name: str, path: Path) -> None:
    plan = pages.work(page, "plan", names={str(path): name}, path=str(path))
    with page.lock:
        page.plan = plan
    path.unlink()
