"""Modbus TCP: bytes of any kind, and two other people's ends of it."""

import asyncio
import contextlib
import itertools
import json
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from pymodbus.client import ModbusTcpClient
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from agent.clock import SystemClock
from agent.doctor import examine
from agent.plc import modbus
from agent.plc.blocks import PlcBlock, agent_block, plc_registers, register_bytes, words
from agent.plc.client import ModbusClient, ModbusConnection
from agent.plc.exchange import Exchange
from agent.plc.modbus import Frame, MalformedError, ModbusError, answer, frames
from agent.plc.probe import probe_client
from agent.plc.server import MOST_CONNECTIONS, ModbusServer
from agent.registry import open_trigger
from agent.triggers import modbus as triggers
from engine.errors import SinkError, TriggerError
from tests.ports import free_port


class Ten:
    """Ten registers from 100 on."""

    def __init__(self):
        self.words = list(range(10))

    def read(self, start, count):
        self.check(start, count)
        return register_bytes(self.words[start - 100 :][:count])

    def write(self, start, data):
        self.check(start, len(data) // 2)
        self.words[start - 100 : start - 100 + len(data) // 2] = words(data)

    def check(self, start, count):
        if not 100 <= start <= start + count <= 110:
            raise ModbusError(modbus.ILLEGAL_ADDRESS)


def test_what_is_written_is_read():
    ten = Ten()
    modbus.check_written(answer(modbus.writing(102, [7, 65535]), ten), 102, 2)
    assert modbus.read_values(answer(modbus.reading(101, 4), ten), 4) == [1, 7, 65535, 4]
    both = bytes.fromhex("17 0064 0002 006c 0001 02 0009")
    assert modbus.read_values(b"\3" + answer(both, ten)[1:], 2) == [0, 1]
    assert ten.words[8] == 9
    assert answer(bytes.fromhex("06 0064 0005"), ten) == bytes.fromhex("06 0064 0005")


@pytest.mark.parametrize(
    ("pdu", "code"),
    [
        ("01 0064 0001", modbus.ILLEGAL_FUNCTION),
        ("03 0000 0001", modbus.ILLEGAL_ADDRESS),
        ("03 0064 000b", modbus.ILLEGAL_ADDRESS),
        ("03 0064 0000", modbus.ILLEGAL_VALUE),
        ("03 0064 007e", modbus.ILLEGAL_VALUE),
        ("03 0064", modbus.ILLEGAL_VALUE),
        ("10 0064 0001 04 0000", modbus.ILLEGAL_VALUE),
        ("10 0064 0001", modbus.ILLEGAL_VALUE),
        ("17 0064 0001 0064 0001 02 00", modbus.ILLEGAL_VALUE),
    ],
)
def test_a_request_that_cannot_be_obeyed_gets_its_code(pdu, code):
    asked = bytes.fromhex(pdu)
    assert answer(asked, Ten()) == bytes((asked[0] | 0x80, code))


@given(st.binary(min_size=1, max_size=253))
def test_any_request_has_an_answer(pdu):
    reply = answer(pdu, Ten())
    assert reply[0] & 0x7F == pdu[0] & 0x7F
    assert len(reply) <= 253


@given(st.lists(st.binary(min_size=1, max_size=253), max_size=5), st.integers(1, 50))
def test_frames_are_found_however_they_are_cut(pdus, size):
    sent = b"".join(
        bytes(Frame(transaction=number, unit=1, pdu=pdu)) for number, pdu in enumerate(pdus)
    )
    received, found = bytearray(), []
    for start in range(0, len(sent), size):
        received += sent[start : start + size]
        found += frames(received)
    assert [frame.pdu for frame in found] == pdus
    assert not received


@pytest.mark.parametrize(
    "head", ["0001 0001 0006 01 03", "0001 0000 0001 01 03", "0001 0000 ffff 01 03"]
)
def test_what_is_no_modbus_is_said(head):
    with pytest.raises(MalformedError):
        list(frames(bytearray.fromhex(head)))


# ---- the server, with a client of another make


@pytest.fixture
def exchange():
    return Exchange(due_s=None, clock=SystemClock())


@pytest.fixture
def server(exchange):
    with served(exchange) as running:
        yield running


def served(exchange, allowed=("127.0.0.1",)):
    return ModbusServer(exchange, listen=("127.0.0.1", 0), allowed=allowed, agent_at=0, plc_at=100)


@contextlib.contextmanager
def client(server):
    with ModbusTcpClient("127.0.0.1", port=server.port, timeout=5, retries=0) as connected:
        yield connected


def write(connected, **signals):
    return connected.write_registers(100, plc_registers(PlcBlock(**signals)), device_id=1)


def test_a_plc_reads_the_agent_s_block_and_writes_its_own(server, exchange, eventually):
    with client(server) as plc:
        assert not write(plc, heartbeat=1, session=4).isError()
        assert not write(plc, heartbeat=2, session=5).isError()
        block = agent_block(plc.read_holding_registers(0, count=32, device_id=1).registers)
        assert block.session == 5
        assert plc.read_holding_registers(100, count=3, device_id=1).registers == [2, 0, 5]
        assert plc.read_holding_registers(20, count=32, device_id=1).exception_code == 2
        assert exchange.fault is None
    eventually(lambda: "no PLC" in (exchange.fault or ""))


def test_a_scan_in_one_request_is_two_in_one(server):
    with client(server) as plc:
        for beat in range(1, 5):
            block = PlcBlock(heartbeat=beat, session=beat // 2, results_ack=beat > 3)
            answer = plc.readwrite_registers(
                read_address=0,
                read_count=32,
                write_address=100,
                values=plc_registers(block),
                device_id=1,
            )
            assert agent_block(answer.registers).session == beat // 2
            assert plc.read_holding_registers(100, count=20, device_id=1).registers == (
                plc_registers(block)
            )


def test_one_plc_writes_and_others_may_only_read(server):
    with client(server) as plc, client(server) as other:
        write(plc, heartbeat=1)
        assert write(other, heartbeat=5).exception_code == modbus.BUSY
        assert not other.read_holding_registers(0, count=32, device_id=1).isError()
    with client(server) as later:
        assert not write(later, heartbeat=1).isError()


def test_who_is_not_allowed_is_closed_and_counted(exchange):
    with served(exchange, ["10.0.0.0/8"]) as server, raw(server) as stranger:
        assert stranger.recv(10) == b""
        assert exchange.peers.refused == 1


def test_garbage_costs_its_connection_and_no_other(server):
    with client(server) as plc, raw(server) as bad:
        write(plc, heartbeat=1)
        bad.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert bad.recv(10) == b""
        assert not write(plc, heartbeat=2).isError()
        assert server._exchange.peers.refused == 1


def test_a_thousand_connections_leave_the_plc_its_own(server, eventually):
    with client(server) as plc, contextlib.ExitStack() as many:
        write(plc, heartbeat=1)
        for _ in range(1000):
            many.enter_context(flooding(server))
        for beat in range(2, 20):
            assert not write(plc, heartbeat=beat).isError()
        assert len(server._peers) <= MOST_CONNECTIONS
        eventually(lambda: server._exchange.peers.refused > 10)
        assert not write(plc, heartbeat=20).isError()


def test_a_reader_that_takes_no_answers_is_closed(server, eventually):
    with client(server) as plc, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.settimeout(10)
        slow.connect(("127.0.0.1", server.port))
        asked = bytes(Frame(transaction=1, unit=1, pdu=modbus.reading(0, 32)))
        with contextlib.suppress(OSError):
            slow.sendall(asked * 500)
        eventually(lambda: server._exchange.peers.refused == 1)
        assert not write(plc, heartbeat=2).isError()


def test_a_port_that_is_taken_is_one_clear_line(exchange, server):
    taken = ModbusServer(
        exchange, listen=("127.0.0.1", server.port), allowed=["::1"], agent_at=0, plc_at=100
    )
    with pytest.raises(SinkError, match="cannot listen at"):
        taken.__enter__()


def raw(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def flooding(server):
    connection = socket.socket()
    connection.setblocking(False)
    connection.connect_ex(("127.0.0.1", server.port))
    return connection


# ---- the client, with a PLC of another make


@pytest.fixture
def plc_memory():
    """A PLC that is a server, with 200 registers; gives its port."""
    with PlcServer() as memory:
        yield memory


class PlcServer:
    """pymodbus's server in a thread."""

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        assert self.ready.wait(60)
        return self

    def run(self):
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.serve())
        self.loop.close()

    async def serve(self):
        data = SimData(0, count=200, values=0, datatype=DataType.REGISTERS)
        self.server = ModbusTcpServer(SimDevice(id=1, simdata=[data]), address=("127.0.0.1", 0))
        await self.server.serve_forever(background=True)
        self.port = self.server.transport.sockets[0].getsockname()[1]
        self.ready.set()
        self.left = asyncio.Event()
        await self.left.wait()
        await self.server.shutdown()

    def __exit__(self, *_: object):
        self.loop.call_soon_threadsafe(self.left.set)
        self.thread.join(60)


def test_the_agent_reads_and_writes_the_registers_of_a_plc(plc_memory, exchange, eventually):
    carrier = ModbusClient(
        exchange,
        host="127.0.0.1",
        port=plc_memory.port,
        unit=1,
        agent_at=0,
        plc_at=100,
        every_s=0.005,
    )
    with carrier, client(plc_memory) as plc:

        def told():
            return agent_block(plc.read_holding_registers(0, count=32, device_id=1).registers)

        write(plc, heartbeat=1, session=1)
        eventually(lambda: exchange.fault is None)
        write(plc, heartbeat=2, session=2)
        eventually(lambda: told().session == 2)
        assert told().heartbeat


def test_a_plc_without_such_registers_is_named(plc_memory, exchange, eventually):
    carrier = ModbusClient(
        exchange,
        host="127.0.0.1",
        port=plc_memory.port,
        unit=1,
        agent_at=0,
        plc_at=190,
        every_s=0.005,
    )
    with carrier:
        eventually(lambda: "no such registers" in exchange.fault)
    assert "reading 20 registers at 190" in exchange.fault


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "protocol"),
        (b"\x00\x01\x00\x00\x00\x03\x01\x83\x04", "it has failed"),
        (b"\x00\x01\x00\x00\x00\x05\x01\x03\x02\x00\x07", "reading 20 registers at 0"),
        (b"\x00\x01\x00\x00\x00", "timed out"),
        (b"", "closed"),
        (b"\x00\x63\x00\x00\x00\x05\x01\x03\x02\x00\x07" * 5000, "no answer among|timed out"),
    ],
)
def test_a_plc_that_answers_nonsense_is_said_in_time(says, why, monkeypatch):
    monkeypatch.setattr("agent.plc.client._ANSWER_S", 0.2)

    def speak():
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            peer.recv(1000)
            peer.sendall(says)
            while says and not left.wait(0.001):
                peer.sendall(says[:11] if len(says) > 1000 else b"")

    left = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=speak)
        thread.start()
        try:
            with (
                ModbusConnection("127.0.0.1", listener.getsockname()[1], 1) as connection,
                pytest.raises(OSError, match=why),
            ):
                connection.read(0, 20)
        finally:
            left.set()
            thread.join()


# ---- the trigger that polls


def test_each_count_is_a_part_with_its_id(plc_memory):
    with client(plc_memory) as plc:
        plc.write_registers(10, [5], device_id=1)
        with polled(plc_memory) as source:
            plc.write_registers(20, [0x4142, 0x4300], device_id=1)
            plc.write_registers(10, [6], device_id=1)
            first = source.read()
            plc.write_registers(20, [0] * 2, device_id=1)
            plc.write_registers(10, [9], device_id=1)
            second = source.read()
    assert (first.count, first.part_id) == (6, "ABC")
    assert (second.count, second.part_id) == (9, None)


def test_a_plc_that_is_away_is_said_and_what_came_meanwhile_is_a_leap(plc_memory):
    source = polled(plc_memory)
    with client(plc_memory) as plc:
        with source:
            pass
        plc.write_registers(10, [3], device_id=1)
        with source:
            assert source.read().count == 3
    refused = polled(plc_memory, port=1)
    with pytest.raises(TriggerError, match="Connection refused"):
        refused.__enter__()


def test_a_part_s_product_is_read_with_its_count(plc_memory):
    with client(plc_memory) as plc, polled(plc_memory, product_at=21) as source:
        plc.write_registers(21, [7], device_id=1)
        plc.write_registers(10, [100], device_id=1)
        assert source.read().product == "7"


def test_a_product_without_a_count_is_said_by_each_connection(plc_memory):
    with client(plc_memory) as plc:
        plc.write_registers(30, [7], device_id=1)
        source = polled(plc_memory, count_at=None, id_at=None, product_at=30)
        with source:
            first = source.read()
            plc.write_registers(30, [8], device_id=1)
            second = source.read()
        with source:
            again = source.read()
    assert [each.product for each in (first, second, again)] == ["7", "8", "8"]
    assert not first.is_trigger


def test_doctor_says_what_the_plc_says_the_line_makes(plc_memory, tmp_path):
    path = tmp_path / "agent.yaml"
    where = {"type": "modbus", "host": "127.0.0.1", "port": plc_memory.port, "product_at": 40}
    path.write_text(
        "agent: {id: test}\ncamera: {type: conveyor}\nmqtt: {host: 127.0.0.1, port: 1}\n"
        "products: [{name: cola, number: 7, bundle: {path: none}}]\n"
        f"product_from: {json.dumps(where)}\n"
    )

    def found():
        (finding,) = (each for each in examine(path) if each.check == "product")
        return finding.level, finding.message

    with client(plc_memory) as plc:
        plc.write_registers(40, [7], device_id=1)
        assert found() == ("ok", "modbus says that the line makes cola")
        plc.write_registers(40, [8], device_id=1)
        assert found()[0] == "warn"
        assert "says '8', which is none of the products" in found()[1]


def polled(plc_memory, port=None, **places):
    where = {"host": "127.0.0.1", "port": port or plc_memory.port, "count_at": 10, "id_at": 20}
    settings = TypeAdapter(triggers.ModbusSettings).validate_python(where | places)
    return open_trigger(settings, threading.Event(), SystemClock())


# ---- what doctor looks at


def test_doctor_says_whether_the_port_is_free_and_the_plc_has_its_registers(
    server, plc_memory, tmp_path, monkeypatch
):
    monkeypatch.setattr("agent.plc.probe.HEARTBEAT_S", 0.2)
    monkeypatch.setattr("agent.plc.probe._PATIENCE_S", 0.0)

    def found(**options):
        path = tmp_path / "agent.yaml"
        sink = json.dumps({"type": "modbus", **options})
        path.write_text(
            "agent: {id: test}\nbundle: {path: none}\n"
            f"camera: {{type: conveyor, trigger: {{type: plc}}}}\nsinks: [{sink}]\n"
        )
        (finding,) = (each for each in examine(path) if each.check == "plc")
        return finding.level, finding.message

    here = {"allow": ["127.0.0.1"], "listen": "127.0.0.1"}
    taken = found(**here, port=server.port)
    assert taken == ("fail", f"cannot listen at 127.0.0.1:{server.port}: Address already in use")
    level, message = found(**here, port=free_port())
    assert (level, "no PLC is connected within" in message) == ("warn", True)
    level, message = found(host="127.0.0.1", port=plc_memory.port)
    assert (level, "heartbeat does not change: is its" in message) == ("warn", True)
    with beating(plc_memory.port):
        level, message = found(host="127.0.0.1", port=plc_memory.port)
    assert (level, message.endswith("heartbeat changes, session 3")) == ("ok", True)
    for place in ({"plc_at": 190}, {"agent_at": 190}):
        level, message = found(host="127.0.0.1", port=plc_memory.port, **place)
        assert (level, "no such registers" in message) == ("fail", True)


def test_doctor_listens_for_the_plc_that_will_connect(monkeypatch):
    port = free_port()
    asked = {"agent_at": 0, "plc_at": 100}
    with beating(port):
        assert probe_client(("127.0.0.1", port), allowed=["127.0.0.1"], **asked) is None
        monkeypatch.setattr("agent.plc.probe._PATIENCE_S", 0.2)
        refused = probe_client(("127.0.0.1", port), allowed=["10.0.0.1"], **asked)
    assert refused.endswith("is the PLC's address in `allow`?")


@contextlib.contextmanager
def beating(port):
    """A PLC whose program runs, and connects again and again."""
    stop = threading.Event()

    def beat():
        while not stop.wait(0.01):
            with contextlib.suppress(OSError), ModbusConnection("127.0.0.1", port, 1) as plc:
                for number in itertools.count(1):
                    plc.write(100, plc_registers(PlcBlock(heartbeat=number & 1, session=3)))
                    if stop.wait(0.01):
                        return

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
