"""`agent report`: what was made, rejected and changed, in local time, as page and table."""

import csv
import json
import time
from dataclasses import replace

import pytest

from agent.commands.report import report
from agent.part import State
from agent.production import moment_ns
from agent.record.annotations import Change, Label
from agent.record.ledger import Ledger
from agent.settings import EvidenceSettings
from agent.station.evidence import Evidence
from engine.errors import AtacError, ConfigurationError
from engine.frame import Box
from engine.picture import jpeg
from tests.agent.parts import ended
from tests.inspections import inspection
from tests.tiny_bundle import good_part

DAY = "2026-03-29"
"""On which clocks in Berlin go from 2:00 to 3:00."""


@pytest.fixture(autouse=True)
def _in_berlin(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def place(tmp_path):
    (tmp_path / "agent.yaml").write_text(
        "agent: {id: line-3}\nbundle: {path: bundle}\n"
        "cameras: [{type: conveyor, name: main}, {type: conveyor, name: =side}]\n"
        "mqtt: {host: 127.0.0.1, port: 1}\nevidence: {folder: evidence}\n"
    )
    begun = moment_ns(DAY)
    with Ledger(tmp_path / "ledger.sqlite", agent_id="line-3") as ledger:
        for number, (camera, state, score, hour) in enumerate(
            [
                ("main", State.OK, 1.0, 1.5),
                ("main", State.OK, 1.0, 2.5),
                ("main", State.NG, 7.0, 2.5),
                ("=side", State.NG, 9.0, 3.0),
                ("=side", State.TIMEOUT, None, 3.0),
                ("main", State.OK, 1.0, 23.5),
            ],
            start=1,
        ):
            pixels = good_part(number)
            closer = Box(left=0, top=0, right=20, bottom=20)
            found = None if score is None else inspection(score, Box.around(pixels), closer)
            part = ended(number, state, inspection=found, pixels=pixels)
            part.part_id = f"<b>{number}</b>"
            part.trigger = replace(
                part.trigger,
                sequence=ledger.next_sequence(camera),
                camera=camera,
                triggered_ns=begun + round(hour * 3.6e12),
            )
            part.verdict = replace(part.ended, decided_ns=part.trigger.triggered_ns)
            ledger.expect(part)
            ledger.record(part, jpeg(pixels) if number == 1 else None)
            if state is State.NG:
                settings = EvidenceSettings(folder=tmp_path / "evidence")
                with Evidence(settings, "line-3", ledger.epoch) as evidence:
                    evidence.offer(part)
        ledger.flush(60)
        ledger.label(Label(epoch=ledger.epoch, sequence=3, label="defective: <i>dent"))
        ledger.note_change(Change(kind="promote", who="<i>Ada", why="better", old="1", new="2"))
    return tmp_path


def test_a_day_in_local_time_also_when_clocks_change(place, capsys):
    page, table = place / "day.html", place / "day.csv"
    options = {"config": place / "agent.yaml", "html": page, "table": table}
    report(**options, begin=DAY, end=DAY, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["ng_said"] == {"defective: <i>dent": 1, "": 1}
    assert (answer["parts"], answer["yield"], answer["changes"]) == (5, 0.4, 0)
    assert answer["cameras"] == {"main": {"OK": 2, "NG": 1}, "=side": {"NG": 1, "TIMEOUT": 1}}
    html = page.read_text()
    assert "5 parts from 2026-03-29 00:00 to 2026-03-30 00:00 CEST, yield 40 %." in html
    assert "<th>defective: &lt;i&gt;dent</th><td>1</td>" in html
    assert "<th>nobody has judged it</th><td>1</td>" in html
    assert html.count("<img") == 3  # two frames, and a thumbnail
    assert "&lt;b&gt;4&lt;/b&gt;" in html
    assert html.index("&lt;b&gt;4") < html.index("&lt;b&gt;3")  # the worst one first
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(row["hour"], row["camera"], row["OK"], row["NG"]) for row in rows] == [
        ("2026-03-29 01:00+0100", "main", "1", "0"),
        ("2026-03-29 03:00+0200", "main", "1", "1"),
        ("2026-03-29 04:00+0200", "'=side", "0", "1"),
    ]


def test_changes_are_named_with_who_and_why(place, capsys):
    page = place / "new" / "report.html"
    report(config=place / "agent.yaml", begin=DAY, html=page)
    assert f"Page: {page}" in capsys.readouterr().out
    assert "<td>&lt;i&gt;Ada</td><td>better</td>" in page.read_text()


def test_what_cannot_be_reported_is_said(place):
    config = place / "agent.yaml"
    for options, why in [
        ({"begin": "yesterday"}, "write a day"),
        ({"end": "2026-13-01"}, "write a day"),
        ({"begin": DAY, "end": "2026-03-01"}, "is not after --from"),
        ({"begin": DAY, "html": place / "agent.yaml" / "x.html"}, "cannot be written"),
    ]:
        with pytest.raises(ConfigurationError, match=why):
            report(config=config, **options)
    with (
        Ledger(place / "ledger.sqlite", agent_id="line-3"),
        pytest.raises(AtacError, match="the agent runs and has no page"),
    ):
        report(config=config)
    (place / "ledger.sqlite").unlink()
    with pytest.raises(ConfigurationError, match="there is no ledger yet"):
        report(config=config)
