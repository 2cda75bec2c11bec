"""G6: what a broker does not take is not delivered, and health says so within two seconds."""

import sqlite3
import threading
import time
from contextlib import ExitStack, closing

import pytest

from agent.mqtt.settings import TlsSettings
from agent.station.run import run_station
from agent.station.station import Model
from agent.station.status import Status
from tests.faults.belt import Belt, Eye, configured
from tests.faults.wire import Wire

# paho leaves a socket whose TLS handshake failed to the garbage collector.
pytestmark = [
    pytest.mark.broker,
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
]

STATE_AND_HEALTH = "topic readwrite atac/line1/state\ntopic readwrite atac/line1/health\n"
QUOTA_EXCEEDED = 0x97


class Fault:
    """A broker with a fault, what health shall say of it and which topics it concerns."""

    def __init__(self, port, said, topics, tls=None):
        self.port = port
        self.said = said
        self.topics = topics
        self.tls = tls


@pytest.fixture
def faulty(start_broker, certify):
    """`faulty(name)` gives a broker with the fault of that name."""
    with ExitStack() as stack:

        def make(name):
            everything = ("alarm", "thumbnail", "verdict")
            match name:
                case "access denied":
                    broker = start_broker(acl=STATE_AND_HEALTH)
                    return Fault(broker.port, "Not authorized", everything)
                case "certificate expired":
                    certificate = certify("127.0.0.1", days=-1)
                    broker = start_broker(tls=certificate)
                    tls = TlsSettings(ca_file=certificate.ca_file)
                    return Fault(broker.port, "its certificate has expired", everything, tls)
                case "own certificate expired":
                    theirs, mine = certify("127.0.0.1"), certify("line1", days=-1)
                    broker = start_broker(tls=theirs, extra="require_certificate true")
                    tls = TlsSettings(
                        ca_file=mine.ca_file,
                        certificate_file=mine.certificate_file,
                        key_file=mine.key_file,
                    )
                    return Fault(broker.port, "own certificate", everything, tls)
                case "quota exceeded":
                    broker = start_broker()
                    wire = stack.enter_context(Wire(broker.port, alter=over_quota))
                    return Fault(wire.port, "Quota exceeded", everything)
                case _:
                    broker = start_broker(extra="max_packet_size 3000")
                    return Fault(broker.port, "packet too large", ("thumbnail",))

        yield make


def over_quota(body: bytes) -> bytes:
    """mosquitto has no quota to exceed; this is how a broker that has one answers."""
    return body[:2] + bytes([QUOTA_EXCEEDED])


FAULTS = (
    "access denied",
    "certificate expired",
    "own certificate expired",
    "quota exceeded",
    "packet too large",
)


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_that_is_refused_counts_as_delivered(
    faulty, tmp_path, eventually, is_full, record, name
):
    fault = faulty(name)
    told: list[tuple[float, Status]] = []
    config = configured(tmp_path, fault.port, tls=fault.tls, drain_s=0)
    stop = threading.Event()
    line = threading.Thread(
        target=run_station,
        args=(config,),
        kwargs={
            "cameras": [Belt(20, stop)],
            "inspector": Eye(),
            "model": Model(threshold=1.0),
            "stop": stop,
            "readers": [lambda status: told.append((time.monotonic(), status))],
        },
    )
    began = time.monotonic()
    line.start()
    try:

        def said():
            return [at for at, status in told if any(fault.said in why for why in status.faults)]

        eventually(said)
        time.sleep(10 if is_full else 0.5)
    finally:
        stop.set()
        line.join()
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as file:
        rows = file.execute("SELECT item, state FROM deliveries").fetchall()
    concerned = [state for item, state in rows if item in fault.topics]
    delivered = concerned.count("taken")
    seconds = said()[0] - began
    record(
        "g6",
        name,
        messages=len(concerned),
        marked_delivered=delivered,
        refused=concerned.count("refused"),
        health_says=" ".join(told[-1][1].faults).replace(f"{tmp_path}/", ""),
        health_says_after_s=round(seconds, 2),
    )
    assert concerned
    assert delivered == 0
    if name == "packet too large":
        assert ("alarm", "taken") in rows
    if is_full:
        assert seconds <= 2
