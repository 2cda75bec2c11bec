"""The example consumer: each alarm once, whatever happens to it or to the broker."""

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from agent.part import State, is_alarm
from agent.record.ledger import Ledger
from agent.requests import Requests
from agent.sinks.delivery import Deliverer
from agent.sinks.mqtt.settings import MqttSettings
from agent.sinks.mqtt.sink import MqttSink
from agent.station.threshold import Threshold
from tests.records import add, settle

pytestmark = pytest.mark.broker

SCRIPT = Path(__file__).parents[4] / "examples" / "subscriber.py"


def sink_of(settings):
    return MqttSink(
        settings, agent_id="line1", is_alarm=lambda part: is_alarm(part.ended.state, "reject")
    )


@pytest.fixture
def ledger(tmp_path):
    sinks = [sink_of(MqttSettings(host="127.0.0.1"))]
    with Ledger(tmp_path / "ledger.sqlite", agent_id="line1", sinks=sinks) as opened:
        yield opened


@pytest.fixture
def broker(start_broker):
    """A broker that keeps only ten messages for a consumer that is away, and says nothing."""
    return start_broker(extra="max_queued_messages 10")


@pytest.fixture
def sending(broker, ledger):
    """`with sending() as publisher:` sends what the ledger holds and answers requests."""

    def start():
        requests = Requests(
            ledger,
            agent_id="line1",
            threshold=Threshold(ledger, calibrated=1.0, calibration_id=""),
            paused=threading.Event(),
        )
        return Deliverer(sink_of(broker.settings), ledger, requests=requests)

    return start


def end(ledger, states):
    """Parts that end so; those that are not OK with an alarm."""
    add(ledger, *states)
    assert ledger.flush(60)


class Consumer:
    """The example as a process, and what stands in its file."""

    def __init__(self, broker, folder):
        self._file = folder / "heard.sqlite"
        self.output = folder / "output.txt"
        self._command = [
            sys.executable, "-u", SCRIPT, "--agent", "line1", "--file", self._file,
            "--host", broker.host, "--port", str(broker.port),
        ]  # fmt: skip

    @contextmanager
    def running(self):
        with self.output.open("a") as output:
            process = subprocess.Popen(self._command, stdout=output)
        with process:
            try:
                yield
            finally:
                process.kill()

    def heard(self):
        if not self._file.exists():
            return []
        with closing(sqlite3.connect(self._file, timeout=60)) as file:
            try:
                return [n for (n,) in file.execute("SELECT sequence FROM parts ORDER BY sequence")]
            except sqlite3.OperationalError:  # no table yet
                return []

    def acted(self):
        return [line for line in self.output.read_text().splitlines() if " NG " in line]


NG, OK = State.NG, State.OK


def test_what_a_broker_has_forgotten_is_asked_for_again(
    broker, ledger, sending, tmp_path, eventually
):
    consumer = Consumer(broker, tmp_path)
    with sending() as publisher:
        with consumer.running():
            end(ledger, [OK, NG, NG, OK, NG])
            eventually(lambda: consumer.heard() == [2, 3, 5])
        end(ledger, [OK, NG, NG, OK])  # the broker keeps these for the consumer, and dies
        eventually(lambda: ledger.waiting("mqtt") == 0)
        broker.kill()
        broker.start()
        eventually(lambda: publisher.status().is_connected)
        with consumer.running():
            eventually(lambda: consumer.heard() == [2, 3, 5, 7, 8])
            broker.kill()
            end(ledger, [NG] * 30)
            broker.start()
            eventually(lambda: consumer.heard() == [2, 3, 5, 7, 8, *range(10, 40)])
    assert len(consumer.acted()) == 35


def test_what_a_broker_had_no_room_for_is_asked_for_again(
    broker, ledger, sending, tmp_path, eventually
):
    consumer = Consumer(broker, tmp_path)
    with sending():
        with consumer.running():
            end(ledger, [NG])
            eventually(lambda: consumer.heard() == [1])
        end(ledger, [NG] * 60)
        eventually(lambda: ledger.waiting("mqtt") == 0)
        with consumer.running():
            eventually(lambda: consumer.heard() == [*range(1, 62)])
    assert len(consumer.acted()) == 61


def test_a_gap_between_two_alarms_is_seen_and_filled(broker, ledger, sending, tmp_path, eventually):
    consumer = Consumer(broker, tmp_path)
    with consumer.running():
        with sending():
            end(ledger, [NG, OK, NG])
            eventually(lambda: consumer.heard() == [1, 3])
        end(ledger, [OK, NG, NG, OK])
        settle(ledger, *ledger.waiting_for("mqtt", after=0, limit=9))
        with sending():
            end(ledger, [OK, NG])
            eventually(lambda: consumer.heard() == [1, 3, 5, 6, 9])
    assert len(consumer.acted()) == 5


def test_what_nobody_has_any_more_is_said_to_be_gone(broker, ledger, sending, tmp_path, eventually):
    consumer = Consumer(broker, tmp_path)
    end(ledger, [NG] * 30)
    ledger._writer.ask(lambda file: file.execute("DELETE FROM deliveries WHERE sequence < 20"))
    with consumer.running(), sending():
        eventually(lambda: "gone:" in consumer.output.read_text())
        end(ledger, [NG])
        eventually(lambda: consumer.heard() == [*range(20, 32)])
    assert f"gone: {ledger.epoch} 1 to 19\n" in consumer.output.read_text()
