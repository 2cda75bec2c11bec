"""The web server around the page."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import uvicorn
from starlette.applications import Starlette

_MOST_AT_ONCE: Final = 64


class Server(uvicorn.Server):
    """Serves `app` on sockets that are given to `run`; encrypted with a certificate."""

    def __init__(self, app: Starlette, certificate: Path | None, key: Path | None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
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
