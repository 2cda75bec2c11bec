"""A PLC whose OPC UA server the agent speaks to: the handshake, and the trigger that subscribes."""

import asyncio
import contextlib
import logging
import shutil
import socket
import sqlite3
import threading
import time
from dataclasses import fields, replace

import pytest

pytest.importorskip("asyncua", reason="needs the extra opcua")

from asyncua import Server, ua
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent.clock import SystemClock
from agent.opcua.identity import Identity
from agent.opcua.probe import probe_plc
from agent.opcua.settings import PlcServerSettings
from agent.opcua.variables import node_name
from agent.plc.blocks import AgentBlock, PlcBlock, ResultCode
from agent.plc.simulated import PlcProgram
from agent.registry import open_trigger
from agent.services import opcua as services
from agent.settings import load_config
from agent.station.station import Model
from agent.triggers.opcua import OpcuaSettings
from engine.errors import ConfigurationError, SinkError, TriggerError
from engine.scripted_inspector import BrightnessInspector
from tests.agent.plc.line import MOST, THRESHOLD, Told, score
from tests.agent.plc.test_line import Line, configured

KINDS = {bool: ua.VariantType.Boolean, str: ua.VariantType.String}
MORE = 100
"""So much higher are the scores of the product with the next number."""
NODES = "ns=2;s=Atac.{side}.{name}"


class Plc:
    """A PLC with an OPC UA server, in a thread; `parts` go through its program."""

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self.ready, self.number, self.parts = threading.Event(), 0, 0
        self.told, self.shown, self.ended, self.show = Told(), 0, set(), None
        self.beats, self.product_of = False, lambda _number: 0
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        assert self.ready.wait(60)
        return self

    def __exit__(self, *_: object):
        self.loop.call_soon_threadsafe(self.left.set)
        self.thread.join(60)

    def run(self):
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.serve())
        # asyncua leaves some behind.
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self.loop.close()

    async def serve(self):
        self.left = asyncio.Event()
        server = self.server = Server()
        await server.init()
        await server.set_application_uri("urn:plc")
        server.set_endpoint("opc.tcp://127.0.0.1:0/plc")
        await server.load_certificate(self.identity.certificate_file)
        await server.load_private_key(self.identity.key_file)
        kinds = ua.SecurityPolicyType
        server.set_security_policy([kinds.NoSecurity, kinds.Basic256Sha256_SignAndEncrypt])
        assert await server.register_namespace("urn:plc:line") == 2
        self.nodes = {}
        for side, block in (("Agent", AgentBlock()), ("Plc", PlcBlock())):
            for each in fields(block):
                value = getattr(block, each.name)
                kind = KINDS.get(type(value), ua.VariantType.Int32)
                name = NODES.format(side=side, name=node_name(each.name))
                node = await server.nodes.objects.add_variable(
                    ua.NodeId.from_string(name),
                    ua.QualifiedName(name, 2),
                    ua.Variant(value if kind in KINDS.values() else int(value), kind),
                )
                await node.set_writable()
                self.nodes[side, each.name] = node
        for name, kind in (("Heartbeat", ua.VariantType.Int16), ("Ready", KINDS[bool])):
            wrong = ua.NodeId.from_string(f"ns=2;s=Wrong.{name}")
            value = ua.Variant(0, kind)
            await server.nodes.objects.add_variable(wrong, ua.QualifiedName(name, 2), value)
        async with server:
            self.url = f"opc.tcp://127.0.0.1:{server.bserver.port}/plc"
            self.program = PlcProgram(arrive=self.arrive, ended=self.end)
            self.ready.set()
            while not self.left.is_set():
                if self.beats:
                    await self.write("Plc", "heartbeat", time.monotonic_ns() % 60_000)
                if self.number or self.parts:
                    await self.scan()
                await asyncio.sleep(0.01)

    async def scan(self):
        found = {
            each.name: await self.nodes["Agent", each.name].read_value()
            for each in fields(AgentBlock)
        }
        found["code"] = ResultCode(found["code"])
        block = self.program.scan(AgentBlock(**found), time.monotonic())
        block = replace(block, product=self.product_of(self.number))
        for each in fields(block):
            await self.write("Plc", each.name, getattr(block, each.name))
        if block.trigger and self.shown < self.number:
            self.shown = self.number
            self.show(self.number, block.count)

    async def write(self, side, name, value):
        kind = KINDS.get(type(value), ua.VariantType.Int32)
        await self.nodes[side, name].write_value(ua.Variant(value, kind))

    def set(self, **values):
        """Write some of the PLC's variables, one after the other."""
        for name, value in values.items():
            asyncio.run_coroutine_threadsafe(self.write("Plc", name, value), self.loop).result(20)

    def arrive(self):
        if self.number == self.parts or len(self.program._waiting) >= MOST:
            return None
        self.number += 1
        return self.number, f"part-{self.number}"

    def end(self, ended):
        self.told.twice += ended.number in self.ended
        self.ended.add(ended.number)
        self.told.ends[ended.reason or ended.code.name] += 1
        expected = score(ended.number) + 1000 * MORE * self.product_of(ended.number)
        self.told.wrong += not ended.reason and ended.score != expected


@pytest.fixture(scope="module")
def plc(tmp_path_factory):
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)
    made = Plc()
    made.identity = Identity(tmp_path_factory.mktemp("plc"), "urn:plc")
    made.identity.prepare()
    with made:
        yield made


def test_a_count_that_grows_is_a_part_with_its_id(plc, tmp_path, eventually):
    plc.set(part_id="", count=5)
    settings = OpcuaSettings(
        server=PlcServerSettings(
            url=plc.url, certificate_file=plc.identity.certificate_file, folder=tmp_path
        ),
        count_node=NODES.format(side="Plc", name="Count"),
        id_node=NODES.format(side="Plc", name="PartId"),
        product_node=NODES.format(side="Plc", name="Session"),
    )
    plc.set(session=7)
    with open_trigger(settings, threading.Event(), SystemClock()) as source:
        eventually(lambda: source._count == 5, 60)
        plc.set(part_id="a", count=6)
        first = source.read()
        plc.set(part_id="", count=9)
        second = source.read()
    assert (first.count, first.part_id, first.product) == (6, "a", "7")
    assert (second.count, second.part_id, second.product) == (9, None, "7")


def test_a_product_is_what_a_variable_says_now(plc):
    plc.set(part_id="lemon")
    settings = OpcuaSettings(
        server=PlcServerSettings(url=plc.url, security="none"),
        product_node=NODES.format(side="Plc", name="PartId"),
    )
    with open_trigger(settings, threading.Event(), SystemClock()) as source:
        first = source.read()
        plc.set(part_id="cola")
        second = source.read()
    assert [each.product for each in (first, second)] == ["lemon", "cola"]
    assert not first.is_trigger


def test_every_part_gets_its_own_result_over_opc_ua(plc, tmp_path, eventually):
    sink = (
        f"{{type: opcua, server: {{url: '{plc.url}', security: none}}, "
        f"agent_nodes: '{NODES.replace('{side}', 'Agent')}', "
        f"plc_nodes: '{NODES.replace('{side}', 'Plc')}'}}"
    )
    with Line(configured(tmp_path, sink)) as line:
        plc.show, plc.parts = line.camera.show, 20
        eventually(lambda: len(plc.ended) == 20, 60)
        plc.number = plc.parts = 0
    told = plc.told
    assert told.wrong == told.twice == 0
    assert told.ends.keys() == {"OK", "NG"}
    assert line.summary.delivered == 20


def test_a_plc_switches_the_product_between_two_parts(plc, tmp_path, eventually):
    """Each part is told the score of its own product, and has its own threshold in the ledger."""
    path = tmp_path / "agent.yaml"
    path.write_text(
        "agent: {id: test}\nline: {deadline_ms: 5000}\nproducts:\n"
        "  - {name: cola, number: 1, bundle: {path: cola}}\n"
        "  - {name: lemon, number: 2, bundle: {path: lemon}}\n"
        "camera: {type: conveyor, trigger: {type: plc, products: true, max_ms: 400}}\n"
        f"sinks:\n  - type: opcua\n    server: {{url: '{plc.url}', security: none}}\n"
        f"    agent_nodes: '{NODES.replace('{side}', 'Agent')}'\n"
        f"    plc_nodes: '{NODES.replace('{side}', 'Plc')}'\n"
    )
    line, plc.told = Line(load_config(path)), Told()
    line.products = {
        name: (Brighter(MORE * number), Model(threshold=MORE * number + THRESHOLD))
        for number, name in enumerate(("cola", "lemon"), start=1)
    }
    plc.ended.clear()
    with line:
        # Two of one, two of the other; the fifth is of a product that nobody knows.
        plc.product_of = lambda number: 3 if number == 5 else 1 + number // 2 % 2
        plc.show, plc.shown, plc.parts = line.camera.show, 0, 12
        eventually(lambda: len(plc.ended) == 12, 60)
        plc.number = plc.parts = 0
    connection = sqlite3.connect(line.config.ledger.path)
    found = connection.execute("SELECT product, threshold, state, reason FROM triggers").fetchall()
    connection.close()
    known = [row for row in found if row[0] in line.products]
    assert [row[0] for row in known] == [
        ("cola", "lemon")[number // 2 % 2] for number in range(1, 13) if number != 5
    ]
    assert all(row[1] == line.products[row[0]][1].threshold for row in known)
    assert {row[2] for row in known} == {"OK", "NG"}
    (other,) = (row for row in found if row not in known)
    assert other == (
        "3",
        None,
        "ERROR",
        "its product '3' is none of the products in the configuration",
    )
    assert plc.told.wrong == 1  # it has no score
    assert plc.told.ends["ERROR"] == 1
    plc.product_of = lambda _number: 0


class Brighter(BrightnessInspector):
    """Its scores are higher by `more`."""

    def __init__(self, more):
        super().__init__()
        self.more = more

    def inspect(self, pixels):
        found = super().inspect(pixels)
        return replace(found, score=found.score + self.more)


def test_a_plc_that_is_away_is_said(tmp_path):
    source = open_trigger(
        OpcuaSettings(
            server=PlcServerSettings(url="opc.tcp://127.0.0.1:1", security="none"),
            count_node="ns=2;s=Count",
        ),
        threading.Event(),
        SystemClock(),
    )
    with source, pytest.raises(TriggerError, match=r"127\.0\.0\.1:1: Connection refused"):
        source.read()


def test_a_server_that_speaks_nonsense_is_said():
    def speak():
        with contextlib.suppress(OSError):
            peer, _ = listener.accept()
            with peer:
                peer.recv(1000)
                peer.sendall(b"ACKF" + bytes(24))
                left.wait()

    left = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=speak, daemon=True)
        thread.start()
        url = f"opc.tcp://127.0.0.1:{listener.getsockname()[1]}"
        source = open_trigger(
            OpcuaSettings(
                server=PlcServerSettings(url=url, security="none"), count_node="ns=2;s=Count"
            ),
            threading.Event(),
            SystemClock(),
        )
        with source, pytest.raises(TriggerError, match=f"{url}: .+"):
            source.read()
        left.set()


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ("{url: http://plc}", "opc.tcp"),
        ("{url: 'opc.tcp://plc:4840'}", "certificate_file"),
        ("{url: 'opc.tcp://plc:4840', security: none}", "{name}"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(tmp_path, server, words):
    sink = f"{{type: opcua, server: {server}, agent_nodes: 'ns=2;s=a', plc_nodes: 'ns=2;s=b'}}"
    with pytest.raises(ConfigurationError, match=words):
        configured(tmp_path, sink)


HANDSHAKE = {
    "talk": "handshake",
    "agent_nodes": NODES.replace("{side}", "Agent"),
    "plc_nodes": NODES.replace("{side}", "Plc"),
}


def secured(plc, folder, **changes):
    known = {"url": plc.url, "certificate_file": plc.identity.certificate_file, "folder": folder}
    return PlcServerSettings(**known | changes)


def test_doctor_sees_a_plc_whose_program_runs(plc, tmp_path):
    plc.set(session=7)
    plc.beats = True
    found = probe_plc(secured(plc, tmp_path), **HANDSHAKE)
    with_product = probe_plc(secured(plc, tmp_path), **HANDSHAKE, names_products=True)
    plc.beats = False
    assert found == {"variables": 29, "is_alive": True, "session": 7}
    assert with_product["variables"] == 30


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plc_nodes": "ns=2;s=No.{name}"}, r"ns=2;s=No.Heartbeat is not there .*; and 4 more$"),
        (
            {"agent_nodes": "ns=2;s=Wrong.{name}"},
            "Wrong.Heartbeat is Int16, and should be Int32 or .*; ns=2;s=Wrong.Ready may not be wr",
        ),
    ],
)
def test_variables_that_do_not_fit_are_named(plc, tmp_path, changes, words):
    with pytest.raises(SinkError, match=words):
        probe_plc(secured(plc, tmp_path), **HANDSHAKE | changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda own: (own / "certificate.der").write_text("x"), "is no certificate, in DER or PEM"),
        (lambda own: (own / "certificate.der").unlink(), "cannot be read"),
        (lambda own: (own / "key.pem").write_text("x"), "is no key without a pass phrase; remove"),
        (lambda own: shutil.copy(own / "other.pem", own / "key.pem"), "is not the key of"),
    ],
)
def test_what_is_wrong_with_our_own_certificate_is_one_line(plc, tmp_path, change, words):
    own = tmp_path / "own"
    shutil.copytree(plc.identity.folder / "own", own)
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    (own / "other.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    assert "is valid until" in Identity(tmp_path, "urn:plc").check()
    with pytest.raises(ConfigurationError, match="is made out for urn:plc, and this is urn:x"):
        Identity(tmp_path, "urn:x").check()
    change(own)
    with pytest.raises(ConfigurationError, match=words):
        Identity(tmp_path, "urn:plc").check()


def test_a_server_with_another_certificate_is_not_spoken_to(plc, tmp_path):
    other = Identity(tmp_path / "other", "urn:plc")
    other.prepare()
    wrong = secured(plc, tmp_path, certificate_file=other.certificate_file)
    settings = OpcuaSettings(server=wrong, count_node=NODES.format(side="Plc", name="Count"))
    with (
        open_trigger(settings, threading.Event(), SystemClock()) as source,
        pytest.raises(TriggerError, match=r"the server has SHA-256 .* is SHA-256 .*: ask those"),
    ):
        source.read()


def test_without_asyncua_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match=r"services.type: 'opcua': needs asyncua; install"):
        services.open(services.OpcuaSettings(), None)
