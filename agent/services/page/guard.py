"""The door of the page: who asks, from where, and how much; nothing gets to a screen past it.

Without users only this machine may look, and nobody may change anything. What changes something
must come from a page of ours: `Origin` is this host and `HX-Request` is there, which a foreign page
cannot send unasked.
"""

import ipaddress
from collections.abc import Iterable, MutableMapping
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent.services.page.access import COOKIE, NOBODY, ONLOOKER, Access, Visitor

BODY_MAX: Final = 64_000
SAFE: Final = frozenset({"GET", "HEAD"})
_LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}
_ENCODED: Final = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
_NO_STORE: Final = (b"cache-control", b"no-store")


class TooLarge(Exception):  # noqa: N818 - of a body
    """A body has more than 64 kB."""


class Guard:
    """Around the whole application.

    Args:
        app: Gets what is allowed; `request.state.visitor` is who asks.
        access: Users and sessions.
        quiet: The beginnings of paths that a browser asks for by itself: no sign of a user.
    """

    def __init__(self, app: ASGIApp, *, access: Access, quiet: Iterable[str]) -> None:
        self._app = app
        self._access = access
        self._quiet = tuple(quiet)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        guarded = _with_headers(send)
        if (refusal := self._refusal(scope, headers)) is not None:
            await _plain(guarded, *refusal)
            return
        scope.setdefault("state", {})["visitor"] = self._visitor(scope, headers)
        try:
            await self._app(scope, _bounded(receive), guarded)
        except TooLarge:
            await _plain(guarded, 413, "more than 64 kB")
        except ClientDisconnect:
            return

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """Why a request goes no further, by its head alone."""
        if not headers.get("host"):
            return 400, "no Host"
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()) or int(length[:12]) > BODY_MAX:
            return 413, "more than 64 kB"
        if scope["method"] in SAFE:
            return None
        if scope["method"] != "POST":
            return 405, "GET, HEAD or POST"
        origin = urlsplit(headers.get("origin", ""))
        if origin.netloc.lower() != headers["host"].lower() or "hx-request" not in headers:
            return 403, "not from a page of this agent"
        return None

    def _visitor(self, scope: Scope, headers: Headers) -> Visitor:
        is_active = not scope["path"].startswith(self._quiet)
        token = cookie_parser(headers.get("cookie", "")).get(COOKIE)
        if token and (found := self._access.visitor(token, is_active=is_active)) is not None:
            return found
        return ONLOOKER if _is_here(scope, headers) else NOBODY


def _is_here(scope: MutableMapping[str, Any], headers: Headers) -> bool:
    """Whether somebody at this machine asks, by its own name and through no proxy."""
    client = scope.get("client")
    name = urlsplit(f"//{headers['host']}").hostname or ""
    if client is None or name not in _LOCAL_NAMES or "x-forwarded-for" in headers:
        return False
    return ipaddress.ip_address(client[0]).is_loopback


def _with_headers(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message["headers"], *_ENCODED]
            if all(name != b"cache-control" for name, _ in message["headers"]):
                headers.append(_NO_STORE)
            message["headers"] = headers
        await send(message)

    return guarded


def _bounded(receive: Receive) -> Receive:
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > BODY_MAX:
            raise TooLarge
        return message

    return bounded


async def _plain(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
