"""G5: 100 kB of evidence over mutual TLS, twenty times a second: from the commit to the PUBACK."""

import os
import time

import numpy as np
import pytest

import agent.sinks.mqtt.messages
from agent.mqtt.settings import TlsSettings
from agent.part import State
from agent.record.ledger import Ledger
from agent.sinks.delivery import Deliverer
from agent.sinks.mqtt.settings import MqttSettings
from agent.sinks.mqtt.sink import MqttSink
from engine.picture import with_comment
from tests.records import add

pytestmark = pytest.mark.broker

EVIDENCE_BYTES = 100_000
RATE = 20


def test_evidence_over_mutual_tls(
    start_broker, tmp_path, certify, eventually, hear, is_full, record, monkeypatch
):
    count = 1200 if is_full else 40
    broker = start_broker(tls=certify("127.0.0.1"), extra="require_certificate true")
    mine = certify("line1")
    settings = MqttSettings(
        host=broker.host,
        port=broker.port,
        tls=TlsSettings(
            ca_file=mine.ca_file, certificate_file=mine.certificate_file, key_file=mine.key_file
        ),
    )
    # As much as a message of evidence had; thumbnails are smaller otherwise.
    monkeypatch.setattr(agent.sinks.mqtt.messages, "THUMBNAIL_MAX_BYTES", 2 * EVIDENCE_BYTES)
    pictures = [b"\xff\xd8" + os.urandom(EVIDENCE_BYTES) for _ in range(8)]
    committed: dict[int, float] = {}
    acknowledged: dict[int, float] = {}

    class PicturesOnly(MqttSink):
        def items(self, _part):
            return ("thumbnail",)

    sink = PicturesOnly(settings, agent_id="line1", is_alarm=lambda _part: True)
    with (
        Ledger(tmp_path / "ledger.sqlite", agent_id="line1", sinks=[sink]) as ledger,
        Deliverer(sink, ledger) as publisher,
    ):
        settle = ledger.settle

        def note_commit() -> None:
            for number in range(len(committed) + 1, ledger.newest("mqtt") + 1):
                committed[number] = time.perf_counter()
            publisher._wake.set()

        def note_acknowledgement(marks) -> None:
            acknowledged.update(dict.fromkeys((m.id for m in marks), time.perf_counter()))
            settle(marks)

        ledger.listen("mqtt", note_commit)
        ledger.settle = note_acknowledgement
        eventually(lambda: publisher.status().is_connected)
        heard = hear(settings, "atac/line1/thumbnail") if not is_full else None
        begun = time.perf_counter()
        for n in range(count):
            time.sleep(max(0.0, begun + n / RATE - time.perf_counter()))
            add(ledger, State.NG, thumbnail=pictures[n % len(pictures)])
        eventually(lambda: len(acknowledged) == count)
        epoch = ledger.epoch
    waited_ms = [(acknowledged[n] - committed[n]) * 1e3 for n in sorted(acknowledged)]
    p50, p99 = np.percentile(waited_ms, (50, 99))
    record(
        "g5",
        "mutual TLS",
        evidence_bytes=EVIDENCE_BYTES,
        parts_per_second=RATE,
        parts=count,
        commit_to_puback_p50_ms=round(float(p50), 2),
        commit_to_puback_p99_ms=round(float(p99), 2),
        commit_to_puback_max_ms=round(max(waited_ms), 2),
    )
    assert sorted(acknowledged) == list(range(1, count + 1))
    if heard is not None:
        eventually(lambda: len(heard.messages) == count)
        assert [payload for _, payload in heard.messages] == [
            with_comment(pictures[n % len(pictures)], f"line1:{epoch}:{n + 1}")
            for n in range(count)
        ]
    if is_full:
        assert p99 <= 25
