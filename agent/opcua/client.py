"""The process that speaks to a PLC's OPC UA server: `python -m agent.opcua.client FILES`.

For a handshake it reads the PLC's variables and writes the agent's, again and again. For a trigger
it subscribes to a variable that counts. For `agent doctor` it looks whether that could work, and
writes nothing.
"""

import asyncio
import ctypes
import logging
import os
import signal
import sys
from pathlib import Path
from time import monotonic
from typing import Any, Final

from asyncua import Client, Node, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.child import AgentEnd
from agent.opcua.identity import Identity, fingerprint, read_certificate
from agent.opcua.variables import UnfitError, Variable, fitting, of_block, of_trigger
from agent.plc.blocks import AgentBlock, Condition, PlcBlock, ResultCode
from engine.errors import ConfigurationError

_PR_SET_PDEATHSIG: Final = 1
_RETRY_S: Final = 1.0
_PULSE_S: Final = 0.5
_TIMEOUT_S: Final = 2.0
_LOOK_S: Final = 2.0
"""A heartbeat changes at least once a second."""
_PART: Final = ("trigger", "session", "count", "part_id", "product")
_SECURITY: Final = "Basic256Sha256 with SignAndEncrypt"
Values = dict[str, Any]
Variables = dict[str, Variable]


class Conversation:
    """Keeps one connection, and tells the agent why there is none."""

    def __init__(self, agent: AgentEnd) -> None:
        self._agent = agent
        self._setup = agent.setup
        self._identity = Identity(Path(self._setup["folder"]), self._setup["uri"])
        self._is_connected = False

    async def run(self) -> None:
        """Talk until the agent has gone."""
        beating = asyncio.create_task(self._beat())
        while not beating.done():
            began = monotonic()
            client = Client(self._setup["url"], timeout=_TIMEOUT_S)
            try:
                await self._secure(client)
                async with client:
                    self._is_connected = True
                    await self._talk(client)
            except ConnectionAbortedError:
                raise
            except Exception as error:  # noqa: BLE001 - asyncua raises what it likes
                self._asked("away", why=await self._why(error))
            self._is_connected = False
            await asyncio.sleep(max(0.0, began + _RETRY_S - monotonic()))

    async def _talk(self, client: Client) -> None:
        setup = self._setup
        if setup["talk"] == "trigger":
            told = ("count", "id", "product")
            variables = of_trigger(client, {name: setup[f"{name}_node"] for name in told})
            if setup["only_looks"]:
                await self._look({}, variables)
            await self._subscribe(client, variables)
            return
        ours = of_block(client, AgentBlock(), setup["agent_nodes"], is_written=True)
        theirs = of_block(client, PlcBlock(), setup["plc_nodes"], is_written=False)
        if not setup.get("names_products"):
            del theirs["product"]  # many a PLC makes one
        if setup["only_looks"]:
            await self._look(ours, theirs)
        else:
            await self._shake_hands(client, ours, theirs)

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
        self._identity.prepare()
        file = Path(setup["certificate_file"])
        read_certificate("server.certificate_file", file)
        await client.set_security(
            SecurityPolicyBasic256Sha256,
            certificate=self._identity.certificate_file,
            private_key=self._identity.key_file,
            server_certificate=file,
        )

    async def _why(self, error: Exception) -> str:
        """Why there is no conversation, in one line; asks the server what security it offers."""
        if isinstance(error, UnfitError | ConfigurationError):
            return str(error)
        said = _said(error)
        if self._is_connected or self._setup["security"] == "none":
            return said
        try:
            client = Client(self._setup["url"], timeout=_TIMEOUT_S)
            offered = await client.connect_and_get_server_endpoints()
        except Exception:  # noqa: BLE001 - the first error says it
            return said
        unfit = self._unfit(offered)
        ours = self._identity.certificate_file
        return unfit or f"{said}; does the PLC trust our certificate, {ours}?"

    def _unfit(self, offered: list[ua.EndpointDescription]) -> str | None:
        """Why no endpoint of a server will do."""
        wanted = [
            each
            for each in offered
            if each.SecurityPolicyUri == SecurityPolicyBasic256Sha256.URI
            and each.SecurityMode == ua.MessageSecurityMode.SignAndEncrypt
        ]
        if not wanted:
            kinds = {
                f"{e.SecurityPolicyUri.rpartition('#')[2]} {e.SecurityMode.name}" for e in offered
            }
            return f"the server does not offer {_SECURITY}, only {', '.join(sorted(kinds))}"
        file = Path(self._setup["certificate_file"])
        known, shown = (
            read_certificate("server.certificate_file", file),
            wanted[0].ServerCertificate,
        )
        if shown and shown.startswith(known.public_bytes(Encoding.DER)):
            return None
        theirs = fingerprint(x509.load_der_x509_certificate(shown)) if shown else "no certificate"
        return (
            f"the server has {theirs}, and {file} is {fingerprint(known)}: "
            "ask those who look after the PLC for its certificate"
        )

    def _asked(self, question: str, **values: object) -> Any:
        try:
            said, _ = self._agent.pulse(question, **values)
        except ConnectionError as error:
            raise ConnectionAbortedError from error  # the agent's, not the PLC's
        return said

    async def _look(self, ours: Variables, theirs: Variables) -> None:
        """Tell what there is, and whether a heartbeat changes, where there is one."""
        await fitting({f"plc {name}": each for name, each in theirs.items()} | ours)
        found: Values = {"variables": len(ours) + len(theirs)}
        if "heartbeat" in theirs:
            node = theirs["heartbeat"].node
            first, until = await node.read_value(), monotonic() + _LOOK_S
            found["is_alive"] = False
            while not found["is_alive"] and monotonic() < until:
                await asyncio.sleep(0.05)
                found["is_alive"] = await node.read_value() != first
            found["session"] = await theirs["session"].node.read_value()
        self._asked("found", **found)
        await asyncio.Event().wait()  # until the agent has gone

    # ---- the handshake

    async def _shake_hands(self, client: Client, ours: Variables, theirs: Variables) -> None:
        types = await fitting(ours)
        sources = {name: each.node for name, each in theirs.items()}
        before: Values = {}
        shown: Values = {}
        is_written = False
        while True:
            began = monotonic()
            heard = await self._read(client, sources)
            if heard["trigger"] and not before.get("trigger"):
                again = await self._read(client, sources)
                heard = again if all(heard.get(name) == again.get(name) for name in _PART) else None
            before = heard or before
            block = self._asked("exchange", plc=heard, is_written=is_written)
            changed = [name for name in ours if block[name] != shown.get(name)]
            await client.write_values(
                [ours[name].node for name in changed],
                [ua.Variant(_value(name, block), types[name]) for name in changed],
            )
            shown, is_written = block, True
            await asyncio.sleep(max(0.0, began + self._setup["every_s"] - monotonic()))

    async def _read(self, client: Client, nodes: dict[str, Node]) -> Any:
        """A block as the agent takes it; `PlcBlock` has the types of its fields."""
        found = await client.read_values(list(nodes.values()))
        empty = PlcBlock()
        return {
            name: type(getattr(empty, name))(value or 0) if name != "part_id" else str(value or "")
            for name, value in zip(nodes, found, strict=True)
        }

    # ---- the trigger

    async def _subscribe(self, client: Client, variables: Variables) -> None:
        await fitting(variables)
        told = {name: each.node for name, each in variables.items()}
        counts = "count" in told
        watched = told.pop("count" if counts else "product")
        changes: asyncio.Queue[int | str] = asyncio.Queue(1000)
        period_ms = self._setup["every_s"] * 1e3
        subscription = await client.create_subscription(period_ms, _Changes(changes))
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


def _said(error: Exception) -> str:
    """An error of asyncua, or of the system, in one line."""
    if isinstance(error, TimeoutError):
        return "does not answer"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
    return f"{type(error).__name__}: {error}".splitlines()[0].strip(": ")


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
