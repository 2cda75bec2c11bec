"""The process that speaks to a PLC's OPC UA server: `python -m agent.opcua.client FILES`.

For a handshake it reads the PLC's variables and writes the agent's, again and again. For a trigger
it subscribes to a variable that counts.
"""

import asyncio
import ctypes
import logging
import os
import signal
import sys
from dataclasses import fields
from pathlib import Path
from time import monotonic
from typing import Any, Final

from asyncua import Client, Node, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256

from agent.child import AgentEnd
from agent.opcua.identity import Identity
from agent.plc.blocks import AgentBlock, Condition, PlcBlock, ResultCode

_PR_SET_PDEATHSIG: Final = 1
_RETRY_S: Final = 1.0
_PULSE_S: Final = 0.5
_TIMEOUT_S: Final = 2.0
_PART: Final = ("trigger", "session", "count", "part_id")
Values = dict[str, Any]


def node_name(field: str) -> str:
    """How a field of a block is called among a PLC's variables: `part_id` is `PartId`."""
    return "".join(part.capitalize() for part in field.split("_"))


class Conversation:
    """Keeps one connection, and tells the agent why there is none."""

    def __init__(self, agent: AgentEnd) -> None:
        self._agent = agent
        self._setup = agent.setup

    async def run(self) -> None:
        """Talk until the agent has gone."""
        beating = asyncio.create_task(self._beat())
        while not beating.done():
            began = monotonic()
            client = Client(self._setup["url"], timeout=_TIMEOUT_S)
            try:
                await self._secure(client)
                async with client:
                    if self._setup["talk"] == "handshake":
                        await self._shake_hands(client)
                    else:
                        await self._subscribe(client)
            except ConnectionAbortedError:
                raise
            except Exception as error:  # noqa: BLE001 - asyncua raises what it likes
                self._say(f"{type(error).__name__}: {error}".splitlines()[0].strip(": "))
            await asyncio.sleep(max(0.0, began + _RETRY_S - monotonic()))

    async def _beat(self) -> None:
        """Show that this process lives, also while the PLC is away."""
        while True:
            self._asked("beat")
            await asyncio.sleep(_PULSE_S)

    async def _secure(self, client: Client) -> None:
        setup = self._setup
        client.application_uri = setup["uri"]
        if setup["security"] == "none":
            return
        identity = Identity(Path(setup["folder"]), setup["uri"])
        identity.prepare()
        await client.set_security(
            SecurityPolicyBasic256Sha256,
            certificate=identity.certificate_file,
            private_key=identity.key_file,
            server_certificate=Path(setup["certificate_file"]),
        )

    def _say(self, why: str) -> None:
        self._asked("away", why=why)

    def _asked(self, question: str, **values: object) -> Any:
        try:
            said, _ = self._agent.pulse(question, **values)
        except ConnectionError as error:
            raise ConnectionAbortedError from error  # the agent's, not the PLC's
        return said

    # ---- the handshake

    async def _shake_hands(self, client: Client) -> None:
        theirs = self._nodes(client, self._setup["plc_nodes"], PlcBlock)
        ours = self._nodes(client, self._setup["agent_nodes"], AgentBlock)
        kinds = {name: await node.read_data_type_as_variant_type() for name, node in ours.items()}
        before: Values = {}
        shown: Values = {}
        is_written = False
        while True:
            began = monotonic()
            heard = await self._read(client, theirs)
            if heard["trigger"] and not before.get("trigger"):
                again = await self._read(client, theirs)
                heard = again if all(heard[name] == again[name] for name in _PART) else None
            before = heard or before
            block = self._asked("exchange", plc=heard, is_written=is_written)
            changed = [name for name in ours if block[name] != shown.get(name)]
            await client.write_values(
                [ours[name] for name in changed],
                [ua.Variant(_value(name, block), kinds[name]) for name in changed],
            )
            shown, is_written = block, True
            await asyncio.sleep(max(0.0, began + self._setup["every_s"] - monotonic()))

    def _nodes(self, client: Client, template: str, kind: type) -> dict[str, Node]:
        return {
            each.name: client.get_node(template.replace("{name}", node_name(each.name)))
            for each in fields(kind)
        }

    async def _read(self, client: Client, nodes: dict[str, Node]) -> Any:
        """A block as the agent takes it; `PlcBlock` has the types of its fields."""
        found = await client.read_values(list(nodes.values()))
        empty = PlcBlock()
        return {
            name: type(getattr(empty, name))(value or 0) if name != "part_id" else str(value or "")
            for name, value in zip(nodes, found, strict=True)
        }

    # ---- the trigger

    async def _subscribe(self, client: Client) -> None:
        setup = self._setup
        counts = setup["count_node"] is not None
        watched = client.get_node(setup["count_node"] if counts else setup["product_node"])
        told = {
            name: client.get_node(setup[f"{name}_node"])
            for name in ("id", "product")
            if counts and setup[f"{name}_node"] is not None
        }
        changes: asyncio.Queue[int | str] = asyncio.Queue(1000)
        subscription = await client.create_subscription(setup["every_s"] * 1e3, _Changes(changes))
        await subscription.subscribe_data_change(watched, sampling_interval=0)
        while True:
            try:
                value = await asyncio.wait_for(changes.get(), _PULSE_S)
            except TimeoutError:
                await client.check_connection()
                self._asked("alive")
                continue
            if not counts:
                self._asked("product", product=value)
            elif isinstance(value, int):
                found = {name: await node.read_value() for name, node in told.items()}
                # What may be the next part's already is nobody's.
                is_newest = changes.empty() and await watched.read_value() == value
                said = found if is_newest else {}
                self._asked("count", count=value, id=said.get("id"), product=said.get("product"))


class _Changes:
    """What a subscription calls."""

    def __init__(self, changes: asyncio.Queue[int | str]) -> None:
        self._changes = changes

    def datachange_notification(self, _node: object, value: object, _data: object) -> None:
        """A new value of the count, or of the product."""
        if isinstance(value, int | str):
            self._changes.put_nowait(value)


def _value(name: str, block: Values) -> Any:
    if name == "condition":
        return int(Condition(block[name]))
    return int(ResultCode(block[name])) if name == "code" else block[name]


def main(argument: str) -> None:
    """Talk until the agent has gone."""
    agent, _ = AgentEnd.taken(argument)
    try:
        asyncio.run(Conversation(agent).run())
    except ConnectionAbortedError:
        os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Also a child that hangs shall not outlive its parent.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)
    main(sys.argv[1])
