"""The agent's side of a conversation with a PLC's OPC UA server, which a process carries."""

import importlib.util
import queue
import socket
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final, Self

from agent.child import Answer, RefusedError, ServiceChild
from agent.opcua.settings import PlcServerSettings
from agent.plc.blocks import AgentBlock, PlcBlock
from agent.plc.exchange import Exchange
from agent.ports import Announcement, Clock
from engine.errors import ConfigurationError, TriggerError
from engine.extras import install

MODULE: Final = "agent.opcua.client"
_LOOK_S: Final = 0.1
_STARTING: Final = "its process starts"


def check_installed(key: str) -> None:
    """Refuse what wants asyncua where there is none."""
    if importlib.util.find_spec("asyncua") is None:
        raise ConfigurationError(key, "opcua", f"needs asyncua; install with: {install('opcua')}")


def conversation(
    server: PlcServerSettings, *, only_looks: bool = False, **talk: object
) -> Mapping[str, object]:
    """What the process is told that speaks to a PLC's server."""
    uri = f"urn:{socket.gethostname()}:atac:client"
    return asdict(server) | {"uri": uri, "only_looks": only_looks} | talk


class HandshakeConnection:
    """Carries an exchange to variables of a PLC; a context manager.

    Args:
        exchange: What the PLC's variables mean, and what is written there.
        server: Where they are.
        agent_nodes: The node id of what we write, with `{name}`.
        plc_nodes: The same of what the PLC writes.
        every_s: From one reading to the next.
    """

    def __init__(
        self,
        exchange: Exchange,
        server: PlcServerSettings,
        *,
        agent_nodes: str,
        plc_nodes: str,
        every_s: float,
    ) -> None:
        self._exchange = exchange
        self._block = AgentBlock()
        self._child = ServiceChild(
            "plc",
            MODULE,
            setup=conversation(
                server,
                talk="handshake",
                agent_nodes=agent_nodes,
                plc_nodes=plc_nodes,
                every_s=every_s,
                names_products=exchange.names_products,
            ),
            feed=None,
            answer=self._answer,
        )

    def __enter__(self) -> Self:
        self._exchange.fails(_STARTING)
        self._child.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._child.__exit__(*error)

    def _answer(self, question: str, values: dict[str, Any]) -> Answer:
        match question:
            case "exchange":
                if values["is_written"]:
                    self._exchange.seen(self._block)
                if values["plc"] is not None:
                    self._exchange.heard(PlcBlock(**values["plc"]))
                self._exchange.fails(None)
                self._block = self._exchange.block()
                return asdict(self._block), ()
            case "away":
                self._exchange.fails(str(values["why"]))
                return None, ()
            case "beat":
                return None, ()
        raise RefusedError(question)


class OpcuaTriggers:
    """Parts announced by a variable of a PLC that counts them; `stop` ends its waits.

    Without such a variable the changes of `product_node` are announced, which are no parts.
    """

    def __init__(
        self,
        server: PlcServerSettings,
        *,
        count_node: str | None,
        id_node: str | None,
        product_node: str | None = None,
        every_s: float,
        stop: threading.Event,
        clock: Clock,
    ) -> None:
        self._stop = stop
        self._clock = clock
        self._url = server.url
        self._setup = conversation(
            server,
            talk="trigger",
            count_node=count_node,
            id_node=id_node,
            product_node=product_node,
            every_s=every_s,
        )
        self._heard: queue.SimpleQueue[Announcement] = queue.SimpleQueue()
        self._count: int | None = None
        self._fault: str | None = _STARTING

    def __enter__(self) -> Self:
        self._child = ServiceChild(
            "opcua-trigger", MODULE, setup=self._setup, feed=None, answer=self._answer
        )
        self._fault = _STARTING
        self._child.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._child.__exit__(*error)

    def read(self) -> Announcement | None:
        """The next part; `None` when told to stop."""
        while not self._stop.is_set():
            try:
                return self._heard.get(timeout=_LOOK_S)
            except queue.Empty:
                fault = self._fault or self._child.fault
                if fault not in (None, _STARTING):
                    self._fault = _STARTING  # said once; the process goes on trying
                    raise TriggerError(f"{self._url}: {fault}") from None
        return None

    def _answer(self, question: str, values: dict[str, Any]) -> Answer:
        match question:
            case "count":
                self._hear(int(values["count"]), _text(values["id"]), _text(values["product"]))
            case "product":
                product = _text(values["product"])
                now = self._clock.now()
                self._heard.put(Announcement(at=now, is_trigger=False, product=product))
            case "away":
                self._fault = str(values["why"])
            case "alive":
                self._fault = None
            case "beat":
                pass
            case _:
                raise RefusedError(question)
        return None, ()

    def _hear(self, count: int, part_id: str | None, product: str | None) -> None:
        """A count; the first is where we begin, as is one that was there before."""
        before, self._count = self._count, count
        if before is not None and count != before:
            self._heard.put(
                Announcement(at=self._clock.now(), count=count, part_id=part_id, product=product)
            )


def _text(value: object) -> str | None:
    """What a variable says; empty is nothing."""
    return None if value is None or value == "" else str(value)
