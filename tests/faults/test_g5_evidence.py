"""G5: 100 kB of evidence over mutual TLS, twenty times a second: from the commit to the PUBACK."""

import os
import time

import numpy as np
import pytest

from agent.ledger import Ledger
from agent.messages import Message
from agent.mqtt import Publisher
from agent.part import State
from agent.sinks.mqtt.settings import MqttSettings, TlsSettings
from agent.verdict import Trigger, Verdict

pytestmark = pytest.mark.broker

EVIDENCE_BYTES = 100_000
RATE = 20


def test_evidence_over_mutual_tls(
    start_broker, tmp_path, certify, eventually, hear, is_full, record
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
    pictures = [os.urandom(EVIDENCE_BYTES) for _ in range(8)]
    committed: dict[int, float] = {}
    acknowledged: dict[int, float] = {}
    with (
        Ledger(tmp_path / "ledger.sqlite", agent_id="line1") as ledger,
        Publisher(settings, ledger, "line1") as publisher,
    ):
        mark = ledger.mark_delivered

        def note_commit() -> None:
            for number in range(len(committed) + 1, ledger.newest_message + 1):
                committed[number] = time.perf_counter()
            publisher._wake()

        def note_acknowledgement(ids: list[int]) -> None:
            acknowledged.update(dict.fromkeys(ids, time.perf_counter()))
            mark(ids)

        ledger.listen(note_commit)
        ledger.mark_delivered = note_acknowledgement
        eventually(lambda: publisher.status.connected)
        heard = hear(settings, "atac/line1/evidence") if not is_full else None
        begun = time.perf_counter()
        for n in range(count):
            time.sleep(max(0.0, begun + n / RATE - time.perf_counter()))
            trigger = Trigger(
                sequence=ledger.next_sequence("main"),
                camera="main",
                part_id="part",
                triggered_ns=time.time_ns(),
            )
            ledger.expect(trigger)
            evidence = Message(
                topic="atac/line1/evidence",
                payload=pictures[n % len(pictures)],
                content_type="image/jpeg",
            )
            verdict = Verdict(
                trigger=trigger, state=State.NG, decided_ns=time.time_ns(), threshold=1.0
            )
            ledger.record(verdict, [evidence])
        eventually(lambda: len(acknowledged) == count)
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
            pictures[n % len(pictures)] for n in range(count)
        ]
    if is_full:
        assert p99 <= 25
