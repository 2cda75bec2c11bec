"""Answers scrapes and health checks, over HTTP from one thread.

    Prometheus ── GET /metrics, token ─▶ atac-metrics ─▶ newest status
    container ── GET /healthy ─────────────▲  too many, too slow, no token: refused and counted

Each connection is for one request. How many are open and how many come in a second is bounded, so
that a flood costs the line nothing that could be measured.
"""

import asyncio
import hmac
import ipaddress
import logging
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Final, Self

from agent.listening import listening
from agent.ports import Watched
from agent.secret import read_secret
from agent.services.metrics import MetricsSettings, MetricsTls
from agent.services.metrics.exposition import CONTENT_TYPE, Exposition
from engine.errors import ConfigurationError

_LOG: Final = logging.getLogger("atac_agent.metrics")
_MOST: Final = 16
"""Connections at once; those beyond are closed."""
_PAUSE_S: Final = 0.05
"""From one connection to the next: twenty a second at most. The others wait in the kernel."""
_PATIENCE_S: Final = 5.0
"""For a whole request, its TLS handshake included."""
_HEAD_MAX_BYTES: Final = 8192
_RETRY_S: Final = 5.0
_HUNG_S: Final = 15.0
"""An agent in which a part has been inspected for so long is not healthy."""

_Answer = tuple[HTTPStatus, bytes]


class MetricsServer:
    """Serves `/metrics` and `/healthy`; a context manager with its own thread.

    An address that cannot be listened at is said once and tried again; the line runs meanwhile.

    Args:
        settings: Where to listen, and for whom.
        watched: Has the status.

    Raises:
        ConfigurationError: The token or the certificate cannot be used, or a token is missing
            where others than this machine could ask.
    """

    def __init__(self, settings: MetricsSettings, watched: Watched) -> None:
        self._settings = settings
        self._watched = watched
        self._tls = check_settings(settings)
        self._answered = 0
        self._refused = 0
        self._said: set[str] = set()
        self.fault: str | None = None
        self._exposition = Exposition(
            lambda: (watched.status(), watched.age_s()), lambda: (self._answered, self._refused)
        )
        self._listener: socket.socket | None = None
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="atac-metrics", daemon=True)

    def __enter__(self) -> Self:
        self._listen()
        self._loop = asyncio.new_event_loop()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._listener is not None:
            self._listener.close()

    def _listen(self) -> bool:
        try:
            place = self._settings
            self._listener = listening(place.address, place.port, backlog=_MOST)
        except OSError as error:
            self.fault = f"metrics: {error.strerror}: nothing is scraped; set another port"
            self._say(f"{error.strerror}; retries")
            return False
        self.fault = None
        self._listener.setblocking(False)
        return True

    def _say(self, problem: str) -> None:
        if problem not in self._said:
            self._said.add(problem)
            _LOG.warning("metrics: %s", problem)

    def _token(self) -> str | None:
        """Read again for each request, so that it can change while the agent runs."""
        return _token(self._settings)

    # ---- everything below runs in the thread

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        """Until the service is left; the runner then ends what is still being answered."""
        accepting = asyncio.create_task(self._accept())
        await self._stop.wait()
        accepting.cancel()

    async def _accept(self) -> None:
        answering: set[asyncio.Task[None]] = set()
        while True:
            try:
                if self._listener is None and not self._listen():
                    await asyncio.sleep(_RETRY_S)
                    continue
                assert self._listener is not None
                connection, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            except OSError as error:  # no more open files, such as
                self._say(f"cannot take a connection ({error.strerror or error})")
                await asyncio.sleep(_RETRY_S)
                continue
            if len(answering) < _MOST:
                task = asyncio.create_task(self._answer(connection))
                answering.add(task)
                task.add_done_callback(answering.discard)
            else:
                connection.close()
                self._refused += 1
            await asyncio.sleep(_PAUSE_S)

    async def _answer(self, connection: socket.socket) -> None:
        """One request, its answer, and the end of the connection."""
        reader = asyncio.StreamReader(limit=_HEAD_MAX_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        status = None
        try:
            async with asyncio.timeout(_PATIENCE_S):
                loop = asyncio.get_running_loop()
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol, connection, ssl=self._tls
                )
                writer = asyncio.StreamWriter(transport, protocol, reader, loop)
                try:
                    status, body = self._found(await reader.readuntil(b"\r\n\r\n"))
                    writer.write(_response(status, body))
                    writer.close()
                    await writer.wait_closed()
                finally:
                    transport.abort()
        except (OSError, EOFError, ValueError, TimeoutError, asyncio.LimitOverrunError):
            status = None
        except Exception:  # noqa: BLE001 - it costs that scrape alone
            status = None
            _LOG.exception("metrics: an error that nobody expected")
        finally:
            connection.close()
        if status in {HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE}:
            self._answered += 1
        else:
            self._refused += 1

    def _found(self, head: bytes) -> _Answer:
        """What is answered to a request; raises `ValueError` for what is no HTTP."""
        request, *lines = head.decode("latin-1").split("\r\n")
        method, target, _version = request.split(" ")
        if method != "GET":
            return HTTPStatus.METHOD_NOT_ALLOWED, b""
        match target.partition("?")[0]:
            case "/healthy":
                return self._health()
            case "/metrics" if self._may_read(dict(_fields(lines))):
                return HTTPStatus.OK, self._exposition.text()
            case "/metrics":
                return HTTPStatus.UNAUTHORIZED, b""
            case _:
                return HTTPStatus.NOT_FOUND, b""

    def _health(self) -> _Answer:
        status, age_s = self._watched.status(), self._watched.age_s()
        if status.makes_progress(age_s=age_s, limit_s=_HUNG_S):
            return HTTPStatus.OK, b"ok\n"
        return HTTPStatus.SERVICE_UNAVAILABLE, b"no progress\n"

    def _may_read(self, fields: Mapping[str, str]) -> bool:
        try:
            token = self._token()
        except ConfigurationError as error:
            self._say(str(error))
            return False
        if token is None:
            return True
        scheme, _, given = fields.get("authorization", "").partition(" ")
        is_same = hmac.compare_digest(given.encode(), token.encode())
        return scheme.lower() == "bearer" and is_same


def check_settings(settings: MetricsSettings) -> ssl.SSLContext | None:
    """What TLS is spoken with; raises `ConfigurationError` for settings that cannot work."""
    context = None if settings.tls is None else _tls_context(settings.tls)
    token = _token(settings)
    if token is None and not _is_local(settings.address):
        remedy = f"is missing where others may ask ({settings.address}); name a file"
        raise ConfigurationError("metrics.token_file", None, remedy)
    return context


def _token(settings: MetricsSettings) -> str | None:
    return read_secret("metrics.token", file=settings.token_file, variable=settings.token_variable)


def _fields(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, _, value = line.partition(":")
        yield name.lower(), value.strip()


def _response(status: HTTPStatus, body: bytes) -> bytes:
    asks = ["WWW-Authenticate: Bearer"] if status is HTTPStatus.UNAUTHORIZED else []
    head = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {CONTENT_TYPE}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
        *asks,
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def _is_local(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _tls_context(settings: MetricsTls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A key that needs a pass phrase must not stop the agent to ask for it.
        context.load_cert_chain(settings.certificate_file, settings.key_file, lambda: "")
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(
            "metrics.tls.certificate_file",
            str(settings.certificate_file),
            f"cannot be used with {settings.key_file} ({reason})",
        ) from None
    return context
