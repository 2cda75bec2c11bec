"""The web server around the page."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST_AT_ONCE: Final = 64
_PATIENCE_S: Final = 10.0
_HEAD_MAX: Final = 64_000


class _Protocol(HttpToolsProtocol):
    """As uvicorn's, but bounded.

    Who opens a connection has to ask something within ten seconds, with a head of at most 64 kB.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        self._head = 0
        self.loop.call_later(_PATIENCE_S, self._leave_if_silent)

    def data_received(self, data: bytes) -> None:
        """Take what has come, unless it is a head without an end."""
        self._head += len(data)
        super().data_received(data)
        if self._head > _HEAD_MAX:
            self.transport.close()

    def on_headers_complete(self) -> None:
        """A head has ended; bodies are bounded elsewhere."""
        self._head = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body, which is no head."""
        self._head = 0
        super().on_body(body)

    def _leave_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """Serves `app` on sockets that are given to `run`; encrypted with a certificate."""

    def __init__(self, app: ASGIApp, certificate: Path | None, key: Path | None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                loop="asyncio",
                lifespan="on",
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=20,
                limit_concurrency=_MOST_AT_ONCE,
                ssl_certfile=certificate,
                ssl_keyfile=key,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None: they are the agent's."""
        yield
