"""An MQTT broker inside the process, for the demo and for machines that have no other.

amqtt speaks MQTT 3.1.1 only and forgets everything when it stops: not for production.
"""

import asyncio
import logging
import threading
from concurrent.futures import Future
from types import TracebackType
from typing import Final, Self

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker
from amqtt.errors import AMQTTError

from engine.errors import AtacError

HOST: Final = "127.0.0.1"
_LISTENER: Final = "default"
_START_TIMEOUT_S: Final = 10.0


class EmbeddedBroker:
    """A broker on a free loopback port, in its own thread; a context manager.

    Anybody on this machine may connect, without a password. Raises `AtacError` on entry when
    it does not start.
    """

    def __init__(self) -> None:
        self._address: Future[int] = Future()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, name="atac-broker")

    @property
    def host(self) -> str:
        return HOST

    @property
    def port(self) -> int:
        return self._address.result()

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._address.result(_START_TIMEOUT_S)
        except (AMQTTError, OSError) as error:
            raise AtacError(f"the embedded broker did not start: {error}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _serve(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._until_stopped())
        except (AMQTTError, OSError) as error:
            if self._address.done():
                raise
            self._address.set_exception(error)

    async def _until_stopped(self) -> None:
        # amqtt warns of every client that goes without a farewell; that is no news here.
        logging.getLogger("amqtt").setLevel(logging.CRITICAL)
        broker = Broker(
            {
                # We accept the connections: amqtt does not tell which free port it took.
                "listeners": {_LISTENER: {"type": "external"}},
                "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {}},
            }
        )

        clients: set[asyncio.StreamWriter] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            clients.add(writer)
            try:
                await broker.external_connected(
                    StreamReaderAdapter(reader), StreamWriterAdapter(writer), _LISTENER
                )
            finally:
                clients.discard(writer)

        await broker.start()
        try:
            server = await asyncio.start_server(accept, HOST, 0)
            async with server:
                self._address.set_result(server.sockets[0].getsockname()[1])
                await self._stop.wait()
        finally:
            # Python 3.11 can lose a cancellation in `wait_for`, and a reader of amqtt's would then
            # wait for ever; a closed connection ends it for certain.
            for writer in clients:
                writer.close()
            await broker.shutdown()
