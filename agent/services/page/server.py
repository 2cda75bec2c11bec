"""The web server around the page."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

_MOST_AT_ONCE: Final = 64
_PATIENCE_S: Final = 10.0


class _Protocol(H11Protocol):
    """As uvicorn's, but who opens a connection has to ask something within ten seconds."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        self.loop.call_later(_PATIENCE_S, self._leave_if_silent)

    def _leave_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """Serves `app` on sockets that are given to `run`; encrypted with a certificate."""

    def __init__(self, app: Starlette, certificate: Path | None, key: Path | None) -> None:
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
