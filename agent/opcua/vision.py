"""The nodes of the OPC UA server: a vision system after OPC 40100-1, and flat variables beside it.

    Objects
      VisionSystem       VisionStateMachine, SystemState, ResultManagement, RecipeManagement
      Agent
        Last             one variable for each figure of the newest part, for clients without events
        Parts, Status    counters and how the agent is
        ResultsAfter     what a client has missed, from the ledger

Everything can be read by trusted clients. Methods that change something are for operators, and no
variable can be written.
"""

import datetime as dt
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from asyncua import Node, Server, ua, uamethod
from asyncua.common.utils import ServiceError
from asyncua.crypto.permission_rules import SimpleRoleRuleset, User, UserRole
from asyncua.server.internal_session import InternalSession
from asyncua.ua.ua_binary import struct_from_binary
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.child import RefusedError
from agent.opcua.identity import Identity, is_valid_now, uris_of
from agent.part import State
from agent.record.rows import Event

_LOG: Final = logging.getLogger("atac_agent.opcua")
_NODESET: Final = Path(__file__).with_name("Opc.Ua.MachineVision.NodeSet2.xml")
_VISION: Final = "http://opcfoundation.org/UA/MachineVision"
OURS: Final = "urn:atac:agent"
_RESULT_READY: Final = 1024
"""The standard's number of ResultReadyEventType."""
RESULTS: Final = 100
MOST_SESSIONS: Final = 20
MOST_CONNECTIONS: Final = 100
"""With those that have no session yet, so that a flood of these leaves clients a place."""
_SESSION_S: Final = 15.0
"""A connection that has no session by then is closed."""
_MOST_ROWS: Final = 500
_MOST_WAITING: Final = 1 << 20
"""Bytes that a client may leave unread, and bytes of a message that is not complete."""
_OK: Final = 0
_REFUSED: Final = -1
_RESULT_STATES: Final = {State.OK: 1, State.NG: 1, State.DROPPED: 3, State.NO_FRAME: 3}
"""After the standard: 1 completed, 3 aborted, 4 failed."""
_FAILED: Final = 4
_SEVERITIES: Final = {State.OK: 100, State.NG: 500}
_SEVERE: Final = 800

Ask = Callable[..., Awaitable[Any]]


LAST: Final[tuple[tuple[str, ua.VariantType, Callable[[Event], object]], ...]] = (
    ("Id", ua.VariantType.String, lambda e: e.id),
    ("Epoch", ua.VariantType.String, lambda e: e.epoch),
    ("Sequence", ua.VariantType.UInt64, lambda e: e.sequence),
    ("Camera", ua.VariantType.String, lambda e: e.camera),
    ("PartId", ua.VariantType.String, lambda e: e.part_id or ""),
    ("TriggerCount", ua.VariantType.Int64, lambda e: -1 if e.count is None else e.count),
    ("State", ua.VariantType.String, lambda e: e.state.value),
    ("IsOk", ua.VariantType.Boolean, lambda e: e.state is State.OK),
    ("Reason", ua.VariantType.String, lambda e: e.reason),
    ("Score", ua.VariantType.Double, lambda e: _number(e.score)),
    ("Threshold", ua.VariantType.Double, lambda e: _number(e.threshold)),
    ("TriggeredAt", ua.VariantType.DateTime, lambda e: _time(e.triggered_ns)),
    ("DecidedAt", ua.VariantType.DateTime, lambda e: _time(e.decided_ns)),
    ("BundleId", ua.VariantType.String, lambda e: e.bundle_id),
)
"""The flat variables: name, type, value of a part."""
_EVENT_FIELDS: Final = ("Camera", "State", "Reason", "Score", "Threshold", "Sequence", "Epoch")
STATUS: Final[tuple[tuple[str, ua.VariantType, object], ...]] = (
    ("IsPaused", ua.VariantType.Boolean, False),
    ("Faults", ua.VariantType.String, []),
    ("Threshold", ua.VariantType.Double, 0.0),
    ("BundleId", ua.VariantType.String, ""),
    ("Backend", ua.VariantType.String, ""),
    ("Epoch", ua.VariantType.String, ""),
    ("Refused", ua.VariantType.UInt64, 0),
)


class _Refusals(logging.Handler):
    """Counts the connections of which asyncua's log says that it has closed them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, _record: logging.LogRecord) -> None:
        """One more."""
        self.count += 1


class _Users:
    """Who a client is, by the certificate of its connection; strangers are refused."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def get_user(
        self,
        iserver: object,
        username: str | None = None,
        password: str | None = None,
        certificate: bytes | None = None,
    ) -> User | None:
        """The role of this certificate; names and passwords count for nothing."""
        del iserver, username, password
        role = None if certificate is None else self._identity.role(certificate)
        roles = {"operator": UserRole.Admin, "reader": UserRole.User}
        return None if role is None else User(role=roles[role], name=role)


class _Rules:
    """Operators may call methods; nobody may write, or change nodes."""

    def __init__(self, readable: set[ua.NodeId]) -> None:
        self._usual = SimpleRoleRuleset()
        self._readable = readable
        self._calls = ua.NodeId(ua.ObjectIds.CallRequest_Encoding_DefaultBinary)
        self._refused = {
            ua.NodeId(getattr(ua.ObjectIds, f"{name}Request_Encoding_DefaultBinary"))
            for name in ("Write", "AddNodes", "DeleteNodes", "AddReferences", "DeleteReferences")
        }

    def check_validity(self, user: User, action_type_id: ua.NodeId, body: Any) -> bool:
        """Whether `user` may do this."""
        if action_type_id in self._refused:
            return False
        if action_type_id == self._calls and user.role is not UserRole.Admin:
            asked = struct_from_binary(ua.CallParameters, body.copy())
            return all(call.MethodId in self._readable for call in asked.MethodsToCall)
        allowed: bool = self._usual.check_validity(user, action_type_id, body)
        return allowed


class VisionServer:
    """The server; an asynchronous context manager.

    Args:
        identity: Our certificate, and who may come.
        setup: `host`, `port`, `uri`, `agent_id`, and whether `unencrypted` reading is allowed.
        ask: Asks the agent; raises `RefusedError` where it does not obey.
    """

    def __init__(self, identity: Identity, setup: Mapping[str, Any], ask: Ask) -> None:
        self._identity = identity
        self._setup = setup
        self._ask = ask
        self._readable: set[ua.NodeId] = set()
        self._server = Server(user_manager=_Users(identity))
        self._last: dict[str, Node] = {}
        self._status: dict[str, Node] = {}
        self._parts: dict[str, Node] = {}
        self._shown: dict[str, object] = {}
        self._results: list[Node] = []
        self._told = 0
        self._newest: Event | None = None
        self._told_at = dt.datetime.now(dt.UTC)
        self._kept: dict[int, tuple[Event, dt.datetime]] = {}
        self._refused = 0
        """Clients that were turned away; connections beside, which asyncua closes itself."""
        self._closed = _Refusals()
        self._jobs = 0

    async def __aenter__(self) -> Self:
        server, setup = self._server, self._setup
        connections = logging.getLogger("asyncua.server.binary_server_asyncio")
        connections.setLevel(logging.WARNING)
        connections.propagate = False
        connections.addHandler(self._closed)
        await server.init()
        await server.set_application_uri(setup["uri"])
        server.set_endpoint(f"opc.tcp://{setup['host']}:{setup['port']}/atac")
        server.set_server_name(f"ATAC Agent {setup['agent_id']}")
        server.product_uri, server.manufacturer_name = OURS, "ATAC Agent"
        iserver = server.iserver
        iserver.max_connections = MOST_CONNECTIONS
        iserver.max_pending_activation_seconds = _SESSION_S
        InternalSession.max_connections = MOST_SESSIONS
        iserver.max_pending_messages_per_connection = 100
        iserver.max_subscriptions = 5 * MOST_SESSIONS
        await server.load_certificate(self._identity.certificate_file)
        await server.load_private_key(self._identity.key_file)
        server.set_security_policy(
            [ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt],
            permission_ruleset=_Rules(self._readable),
        )
        server.set_identity_tokens([ua.AnonymousIdentityToken])
        server.set_certificate_validator(self._validate)
        await server.import_xml(_NODESET)
        await server.load_data_type_definitions()
        self._vision = await server.get_namespace_index(_VISION)
        self._ours = await server.register_namespace(OURS)
        await self._make_vision_system()
        await self._make_agent()
        await server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop()

    async def _validate(
        self, certificate: x509.Certificate, described: ua.ApplicationDescription
    ) -> None:
        """Turn a stranger away before it has a session."""
        data = certificate.public_bytes(Encoding.DER)
        role = self._identity.role(data)
        if role is not None and is_valid_now(certificate):
            if described.ApplicationUri in uris_of(certificate):
                return
            why = ua.StatusCodes.BadCertificateUriInvalid
        elif role is not None:
            why = ua.StatusCodes.BadCertificateTimeInvalid
        else:
            why = ua.StatusCodes.BadCertificateUntrusted
            self._identity.reject(data)
        self._refused += 1
        raise ServiceError(why)

    @property
    def refused(self) -> int:
        """Clients and connections that were turned away."""
        return self._refused + self._closed.count

    def close_greedy(self) -> None:
        """Close clients that do not read what they asked for, or send a message without end."""
        assert self._server.bserver is not None
        for client in list(self._server.bserver.clients):
            transport, half = client.transport, len(client._buffer)  # noqa: SLF001 - no other way
            if transport is None or transport.is_closing():
                continue
            if max(transport.get_write_buffer_size(), half) > _MOST_WAITING:
                transport.abort()
                self._refused += 1

    # ---- the nodes

    async def _make_vision_system(self) -> None:
        server, vision = self._server, self._vision
        kind = await server.nodes.base_object_type.get_child([f"{vision}:VisionSystemType"])
        system = await server.nodes.objects.add_object(self._ours, "VisionSystem", kind)
        await self._leave_out(system)
        machine = await system.get_child([f"{vision}:VisionStateMachine"])
        automatic = await machine.get_child([f"{vision}:AutomaticModeStateMachine"])
        self._machine = await machine.get_child(["0:CurrentState"])
        self._automatic = await automatic.get_child(["0:CurrentState"])
        self._system_state = await system.get_child([f"{vision}:SystemState"])
        for parent, name, method in (
            (automatic, "StartSingleJob", self._start_single_job),
            (automatic, "StartContinuous", self._start_continuous),
            (automatic, "Stop", self._stop),
            (automatic, "Abort", self._stop),
            (machine, "Reset", self._reset),
        ):
            server.link_method(await parent.get_child([f"{vision}:{name}"]), uamethod(method))
        results = await system.get_child([f"{vision}:ResultManagement", f"{vision}:Results"])
        empty = ua.ResultDataType()
        for number in range(RESULTS):
            self._results.append(
                await results.add_variable(self._ours, f"Result{number:02}", empty)
            )
        recipes = await system.get_child([f"{vision}:RecipeManagement", f"{vision}:Recipes"])
        self._recipe = await recipes.add_variable(self._ours, "InForce", "")
        ready = server.get_node(ua.NodeId(_RESULT_READY, vision))
        types = {name: kind for name, kind, _ in LAST}
        made = await server.create_custom_event_type(
            self._ours,
            "InspectionResultEventType",
            ready,
            [(name, types[name]) for name in _EVENT_FIELDS],
        )
        self._ready = await server.get_event_generator(made, system)

    async def _leave_out(self, system: Node) -> None:
        """Take away what the standard leaves to us and we do not have."""
        vision = self._vision
        for path in (
            ["SafetyStateManagement"],
            ["DiagnosticLevel"],
            ["ConfigurationManagement", "ConfigurationTransfer"],
            ["RecipeManagement", "RecipeTransfer"],
            ["RecipeManagement", "Products"],
            ["ResultManagement", "ResultTransfer"],
        ):
            *above, name = [f"{vision}:{name}" for name in path]
            parent = await system.get_child(above) if above else system
            await _cut(parent, await parent.get_child([name]))
        for name in ("RecipeManagement", "ConfigurationManagement", "ResultManagement"):
            parent = await system.get_child([f"{vision}:{name}"])
            for method in await parent.get_methods():
                await _cut(parent, method)

    async def _make_agent(self) -> None:
        agent = await self._server.nodes.objects.add_object(self._ours, "Agent")
        last = await agent.add_object(self._ours, "Last")
        for name, kind, _ in LAST:
            self._last[name] = await _variable(last, self._ours, f"Last.{name}", name, kind)
        status = await agent.add_object(self._ours, "Status")
        for name, kind, value in STATUS:
            made = await _variable(status, self._ours, f"Status.{name}", name, kind, value)
            self._status[name] = made
        parts = await agent.add_object(self._ours, "Parts")
        for state in State:
            name, kind = state.value, ua.VariantType.UInt64
            self._parts[name] = await _variable(parts, self._ours, f"Parts.{name}", name, kind, 0)
        method = await agent.add_method(
            ua.NodeId("ResultsAfter", self._ours),
            ua.QualifiedName("ResultsAfter", self._ours),
            uamethod(self._results_after),
            [
                _argument("Epoch", ua.ObjectIds.String, "of the newest part that is known"),
                _argument("Sequence", ua.ObjectIds.UInt64, "of the same; 0 for all there are"),
                _argument("Limit", ua.ObjectIds.UInt32, "how many, at most 500"),
            ],
            [_argument("Results", ua.ObjectIds.String, "each as JSON, oldest first", rank=1)],
        )
        self._readable.add(method.nodeid)

    # ---- what the agent says

    async def show(self, status: Mapping[str, Any]) -> None:
        """The newest status of the agent; writes what has changed."""
        if not status:
            machine, automatic, system = "Preoperational", "", 4
        elif status["is_last"]:
            machine, automatic, system = "Halted", "", 4
        elif not status["is_able"]:
            machine, automatic, system = "Error", "", 5
        elif status["is_paused"]:
            machine, automatic, system = "Operational", "Ready", 2
        else:
            machine, automatic, system = "Operational", "ContinuousExecution", 1
        await self._show(self._machine, "machine", machine, ua.LocalizedText)
        await self._show(self._automatic, "automatic", automatic, ua.LocalizedText)
        await self._show(self._system_state, "system", system, _system_state)
        if not status:
            return
        values = {
            "IsPaused": status["is_paused"],
            "Faults": list(status["faults"]),
            "Threshold": _number(status["threshold"]),
            "BundleId": status["bundle_id"],
            "Backend": status["backend"],
            "Epoch": status["epoch"],
            "Refused": self.refused,
        }
        for name, kind, _ in STATUS:
            await self._show(self._status[name], f"Status.{name}", values[name], kind)
        for name, count in status["counts"].items():
            await self._show(self._parts[name], f"Parts.{name}", count, ua.VariantType.UInt64)
        await self._show(self._recipe, "recipe", status["bundle_id"], ua.VariantType.String)

    async def _show(
        self,
        node: Node,
        name: str,
        value: object,
        kind: ua.VariantType | Callable[[Any], object],
    ) -> None:
        """Write a variable where `value` is another than before; `kind` makes of it what it holds.

        By the server's own way, without the checks that writes of clients go through.
        """
        if name in self._shown and self._shown[name] == value:
            return
        self._shown[name] = value
        is_type = isinstance(kind, ua.VariantType)
        await self._write(node, ua.Variant(value, kind) if is_type else ua.Variant(kind(value)))

    async def _write(self, node: Node, value: ua.Variant) -> None:
        await self._server.write_attribute_value(node.nodeid, _said(value, dt.datetime.now(dt.UTC)))

    async def tell(self, event: Event) -> None:
        """A part has ended: its variables, its place among the results, its event."""
        self._newest, self._told_at = event, dt.datetime.now(dt.UTC)
        for name, kind, value in LAST:
            if self._is_heard(self._last[name], partial(self._last_value, kind, value)):
                await self._show(self._last[name], f"Last.{name}", value(event), kind)
            else:
                self._shown.pop(f"Last.{name}", None)
        place = self._told % RESULTS
        self._told += 1
        self._kept[place] = event, self._told_at
        if self._is_heard(self._results[place], partial(self._kept_result, place)):
            await self._write(self._results[place], ua.Variant(_result(event)))
        if self._server.iserver.subscription_service.subscriptions:
            await self._send(event)

    def _is_heard(self, node: Node, made: Callable[[ua.NodeId, int], ua.DataValue]) -> bool:
        """Whether a client has subscribed to a variable; else its value is `made` when it is read.

        What nobody reads costs nothing.
        """
        value = self._server.iserver.aspace[node.nodeid].attributes[ua.AttributeIds.Value]
        if value.datachange_callbacks:
            return True
        if value.value_callback is None:
            value.value_callback = made
        return False

    def _last_value(
        self, kind: ua.VariantType, value: Callable[[Event], object], *_: object
    ) -> ua.DataValue:
        assert self._newest is not None
        return _said(ua.Variant(value(self._newest), kind), self._told_at)

    def _kept_result(self, place: int, *_: object) -> ua.DataValue:
        event, told_at = self._kept[place]
        return _said(ua.Variant(_result(event)), told_at)

    async def _send(self, event: Event) -> None:
        """The event of a part, to those who subscribed to events."""
        result = _result(event)
        ready = self._ready.event
        for each in fields(result):
            if each.name != "Encoding" and hasattr(ready, each.name):
                setattr(ready, each.name, getattr(result, each.name))
        # As it is declared, asyncua would send nothing for this one.
        ready.ResultState = ua.Variant(int(result.ResultState), ua.VariantType.Int32)
        for name, _, value in LAST:
            if name in _EVENT_FIELDS:
                setattr(ready, name, value(event))
        ready.Message = ua.LocalizedText(f"{event.part_id or event.id} {event.state}")
        ready.Severity = _SEVERITIES.get(event.state, _SEVERE)
        await self._ready.trigger(time_attr=_time(event.decided_ns))

    # ---- what clients call

    async def _start_continuous(self, _parent: object, *_arguments: object) -> Any:
        error = await self._obeyed("resume")
        return await self._job(), ua.Variant(error, ua.VariantType.Int32)

    async def _start_single_job(self, _parent: object, *arguments: object) -> Any:
        part = next((each.Id for each in arguments if isinstance(each, ua.PartIdDataType)), None)
        error = await self._obeyed("trigger", part_id=part or None)
        return await self._job(), ua.Variant(error, ua.VariantType.Int32)

    async def _stop(self, _parent: object, *_arguments: object) -> Any:
        return ua.Variant(await self._obeyed("pause"), ua.VariantType.Int32)

    async def _reset(self, _parent: object, *_arguments: object) -> Any:
        """The agent mends itself; this says whether it has."""
        return ua.Variant(await self._obeyed("reset"), ua.VariantType.Int32)

    async def _job(self) -> Any:
        self._jobs += 1
        return ua.JobIdDataType(Id=f"{self._setup['agent_id']}-{self._jobs}")

    async def _obeyed(self, question: str, **values: object) -> int:
        try:
            await self._ask(question, **values)
        except (RefusedError, ConnectionError) as error:
            _LOG.warning("OPC UA: %s is refused: %s", question, error)
            return _REFUSED
        return _OK

    async def _results_after(
        self, _parent: object, epoch: str, sequence: int, limit: int
    ) -> ua.Variant:
        asked = {"epoch": epoch or "", "sequence": sequence, "limit": min(limit, _MOST_ROWS)}
        rows = await self._ask("rows_after", **asked)
        texts = [json.dumps(row, separators=(",", ":")) for row in rows]
        return ua.Variant(texts, ua.VariantType.String, is_array=True)


async def _cut(parent: Node, node: Node) -> None:
    """Take a node away, with all below it; nothing but its parent knows of it.

    asyncua would look for that in each of its nodes, which takes half of the start.
    """
    for known in await parent.get_references(direction=ua.BrowseDirection.Forward):
        if known.NodeId == node.nodeid:
            await parent.delete_reference(node, known.ReferenceTypeId, bidirectional=False)
    await node.delete(delete_references=False, recursive=True)


async def _variable(
    parent: Node,
    namespace: int,
    identifier: str,
    name: str,
    kind: ua.VariantType,
    value: Any = None,
) -> Node:
    first = _FIRST.get(kind, 0) if value is None else value
    return await parent.add_variable(
        ua.NodeId(identifier, namespace),
        ua.QualifiedName(name, namespace),
        ua.Variant(first, kind, is_array=isinstance(first, list)),
    )


def _argument(name: str, kind: int, text: str, *, rank: int = -1) -> ua.Argument:
    return ua.Argument(
        Name=name,
        DataType=ua.NodeId(kind),
        ValueRank=rank,
        ArrayDimensions=[],
        Description=ua.LocalizedText(text),
    )


def _result(event: Event) -> Any:
    recipe = {"Id": event.bundle_id, "Description": None, "Version": None, "Hash": None}
    return ua.ResultDataType(
        ResultId=ua.ResultIdDataType(Id=event.id),
        IsPartial=False,
        IsSimulated=False,
        ResultState=ua.ResultStateDataType(_RESULT_STATES.get(event.state, _FAILED)),
        MeasId=ua.MeasIdDataType(Id=event.id),
        PartId=ua.PartIdDataType(Id=event.part_id or ""),
        InternalRecipeId=ua.RecipeIdInternalDataType(**recipe),
        InternalConfigurationId=ua.ConfigurationIdDataType(Id=event.calibration_id),
        JobId=ua.JobIdDataType(Id=event.epoch),
        CreationTime=_time(event.decided_ns),
        ProcessingTimes=ua.ProcessingTimesDataType(
            StartTime=_time(event.triggered_ns), EndTime=_time(event.decided_ns)
        ),
        ResultContent=[
            ua.Variant(event.state.value, ua.VariantType.String),
            ua.Variant(_number(event.score), ua.VariantType.Double),
            ua.Variant(_number(event.threshold), ua.VariantType.Double),
        ],
    )


def _system_state(state: int) -> Any:
    """After SEMI E10, as the standard has it."""
    made = ua.SystemStateDescriptionDataType()
    made.State = ua.SystemStateDataType(state)
    return made


def _said(value: ua.Variant, at: dt.datetime) -> ua.DataValue:
    return ua.DataValue(value, SourceTimestamp=at, ServerTimestamp=at)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _time(ns: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(ns / 1e9, dt.UTC)


_FIRST: Final = {
    ua.VariantType.String: "",
    ua.VariantType.Boolean: False,
    ua.VariantType.Double: float("nan"),
    ua.VariantType.DateTime: dt.datetime.fromtimestamp(0, dt.UTC),
}
