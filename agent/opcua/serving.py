"""The process of the OPC UA server: what the agent says goes into nodes, calls of clients go out.

agent ── status ──▶ pulse thread ──┐
      ── feed ────▶ feed thread ───┴▶ asyncio: nodes, events ──▶ clients
      ◀─ pause, resume, trigger, rows ── methods ◀──────────────┘
"""

import asyncio
import logging
import os
import threading
from collections import deque
from pathlib import Path
from time import monotonic
from typing import Any, Final

from agent.child import AgentEnd
from agent.listening import listening
from agent.opcua.identity import Identity
from agent.opcua.vision import VisionServer
from agent.record.feed import follow
from agent.record.rows import Event
from engine.errors import ConfigurationError

_LOG: Final = logging.getLogger("atac_agent.opcua")
_PULSE_S: Final = 0.5
_START_S: Final = 300.0
_STILL_S: Final = 10.0
"""A loop that does not turn for so long hangs: the agent hears no pulse, and starts another."""
_AGAIN_S: Final = 5.0
"""From one look at what is wrong to the next."""
_ROUND_S: Final = 0.25
_ROOM: Final = 10_000
_ENDED: Final = 3


def serve(argument: str) -> None:
    """Serve until the agent has gone."""
    logging.basicConfig(format="agent: %(message)s", level=logging.WARNING)
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # strangers write no log
    agent, _ = AgentEnd.taken(argument)
    Serving(agent).run()


class Serving:
    """Brings status, parts and calls to the loop in which the server lives."""

    def __init__(self, agent: AgentEnd) -> None:
        self._agent = agent
        self._turned = monotonic() + _START_S
        self._status: dict[str, Any] = {}
        self._events: deque[Event] = deque(maxlen=_ROOM)
        self._why: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()

    def run(self) -> None:
        """Serve; ends the process when the agent has gone."""
        threading.Thread(target=self._beat, name="atac-opcua-pulse", daemon=True).start()
        threading.Thread(target=self._follow, name="atac-opcua-feed", daemon=True).start()
        asyncio.run(self._serve())

    def _beat(self) -> None:
        try:
            while monotonic() - self._turned < _STILL_S:
                said, _ = self._agent.pulse("status", why=self._why)
                assert isinstance(said, dict)
                self._status = said
                self._wake()
                threading.Event().wait(_PULSE_S)
        except ConnectionError:
            os._exit(0)  # the agent has gone; nothing here is kept
        os._exit(_ENDED)

    def _follow(self) -> None:
        for event in follow(self._agent.feed):
            self._events.append(event)
            self._wake()

    def _wake(self) -> None:
        """There is something new for the loop."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._news.set)

    async def _serve(self) -> None:
        setup = self._agent.setup
        identity = Identity(Path(setup["folder"]), setup["uri"])
        while (why := _wrong(identity, setup["host"], setup["port"])) is not None:
            self._why, self._turned = why, monotonic() + _AGAIN_S
            await asyncio.sleep(_AGAIN_S)
        self._why, self._turned = None, monotonic() + _START_S
        server = VisionServer(identity, setup, self._asked)
        async with server:
            self._loop, shown, has_warned = asyncio.get_running_loop(), None, False
            while True:
                self._turned = monotonic()
                server.close_greedy()
                if server.refused and not has_warned:
                    has_warned = True
                    _LOG.warning("OPC UA: a connection is turned away; Status.Refused counts them")
                if shown is not self._status:
                    shown = self._status
                    await server.show(shown)
                for _ in range(min(len(self._events), 100)):
                    self._turned = monotonic()  # in a flood each takes a while
                    await server.tell(self._events.popleft())
                    await asyncio.sleep(0.0)
                if not self._events:
                    # Parts that come together cost the line half as much as one by one.
                    await asyncio.sleep(_ROUND_S)
                    await self._news.wait()
                    self._news.clear()

    async def _asked(self, question: str, **values: object) -> Any:
        """Ask the agent without holding up the loop; raises `RefusedError` or `ConnectionError`."""
        said, _ = await asyncio.to_thread(self._agent.ask, question, **values)
        return said


def _wrong(identity: Identity, host: str, port: int) -> str | None:
    """Why the server cannot start yet."""
    try:
        identity.prepare()
        identity.check()
        listening(host, port, backlog=1).close()
    except ConfigurationError as error:
        return str(error)
    except OSError as error:
        # Without a name it is the port's.
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return None
