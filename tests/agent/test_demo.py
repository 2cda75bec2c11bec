"""The demo: the real line over generated parts, its alarms taken off a real broker."""

import json
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from time import perf_counter

import pytest

from agent.commands.demo import describe, describe_alarm
from agent.demo import BUNDLE, Alarm, Listener, run_demo
from agent.report import NEXT_STEPS, _place, write_demo_report
from agent.sinks.mqtt.broker import EmbeddedBroker
from engine.errors import ConfigurationError


@pytest.fixture(scope="module")
def ended():
    """One demo of 60 parts with the bundled model."""
    lines, alarms = [], []
    summary, comparison = run_demo(
        parts=60,
        seed=3,
        rate=None,
        stop=threading.Event(),
        started=perf_counter(),
        ready=lines.append,
        show=alarms.append,
    )
    return summary, comparison, lines, alarms


def test_every_part_is_accounted_for(ended):
    summary, comparison, _, _ = ended
    verdicts = summary.caught + summary.missed + summary.false_alarms + summary.passed
    assert summary.parts == 60 == verdicts + summary.undecided
    assert len(comparison.good_scores) + len(comparison.defective_scores) == verdicts


def test_every_alarm_sent_is_received_with_its_picture(ended):
    summary, _, _, alarms = ended
    assert summary.alarms_sent == summary.alarms_received == summary.thumbnails_received
    assert len(alarms) == summary.alarms_sent == summary.caught + summary.false_alarms
    assert all(a.state == "NG" and a.score > a.threshold == summary.threshold for a in alarms)


def test_the_bundled_model_finds_defects(ended):
    summary, _, _, _ = ended
    assert summary.caught
    assert summary.missed == summary.false_alarms == 0


def test_the_line_to_listen_with_is_given(ended):
    _, _, lines, _ = ended
    (line,) = lines
    assert re.fullmatch(r"mosquitto_sub -h 127\.0\.0\.1 -p \d+ -t atac/demo/alarm", line)


def test_the_page_shows_pictures_and_needs_nothing_else(ended, tmp_path):
    summary, comparison, _, _ = ended
    path = tmp_path / "new" / "demo.html"
    write_demo_report(path, summary, comparison)
    html = path.read_text()
    assert html.count("<img") == 3 * len(comparison.shown) > 0
    assert html.count('src="data:image/jpeg;base64,') == html.count("<img")
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert "<script" not in html
    assert path.stat().st_size < 8_000_000
    for part in comparison.shown:
        assert part.part.part_id in html
    for _, command in NEXT_STEPS:
        assert command in html


def test_the_threshold_is_in_the_middle_of_the_bars():
    assert _place(0.2, 0.2, 5.0) == 0.5
    assert 0 == _place(0.0, 0.2, 5.0) < _place(0.02, 0.2, 5.0) < 0.5
    assert 0.5 < _place(2.0, 0.2, 5.0) < _place(1e9, 0.2, 5.0) == 1


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", '"><iframe src=x>'])
def test_names_on_the_page_are_text(ended, tmp_path, hostile):
    summary, comparison, _, _ = ended
    part = comparison.shown[0]
    odd = replace(part, part=replace(part.part, part_id=hostile), truth=hostile)
    path = tmp_path / "demo.html"
    write_demo_report(path, summary, replace(comparison, shown=[odd]))
    html = path.read_text()
    assert "<script" not in html
    assert "<iframe" not in html
    assert html.count("&gt;") >= 2


def test_a_page_that_cannot_be_written_is_said_so(ended, tmp_path):
    summary, comparison, _, _ = ended
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="--report"):
        write_demo_report(tmp_path / "file" / "demo.html", summary, comparison)


def test_the_summary_is_told_and_is_json(ended):
    summary, _, _, _ = ended
    text = describe(summary)
    assert f"{summary.alarms_sent} sent, {summary.alarms_received} received" in text
    assert str(summary.parts) in text


def test_a_stopped_demo_ends_with_what_it_has():
    stop = threading.Event()
    heard = []

    def show(alarm: Alarm) -> None:
        heard.append(alarm)
        stop.set()

    summary, _ = run_demo(
        parts=None,
        seed=0,
        rate=None,
        stop=stop,
        started=perf_counter(),
        ready=lambda _: None,
        show=show,
    )
    assert summary.parts > 0
    assert summary.alarms_sent == summary.alarms_received == len(heard) >= 1


def test_an_alarm_is_one_line():
    alarm = Alarm(
        part_id="part-000012",
        state="NG",
        score=7.3,
        threshold=2.25,
        box=(10, 20, 110, 70),
        reason=None,
    )
    assert (
        describe_alarm(alarm) == "NG  part-000012  score   7.30 against 2.25  box 100×50 at 10,20"
    )


def test_an_alarm_that_comes_twice_counts_once():
    shown = []
    listener = Listener(perf_counter(), shown.append)
    payload = json.dumps(
        {
            "id": "demo:e:1",
            "part_id": "p",
            "state": "ERROR",
            "score": None,
            "threshold": None,
            "passes": [],
            "reason": "why",
        }
    ).encode()
    listener.hear("atac/demo/alarm", payload)
    listener.hear("atac/demo/alarm", payload)
    assert listener.alarms == len(shown) == 1
    assert describe_alarm(shown[0]) == "ERROR p  why"


def test_two_brokers_live_side_by_side_and_go():
    before = threading.active_count()
    with EmbeddedBroker() as one, EmbeddedBroker() as other:
        assert one.port != other.port
    assert threading.active_count() == before


def test_the_bundle_is_small_enough_for_a_repository():
    assert sum(path.stat().st_size for path in BUNDLE.iterdir()) < 12_000_000


COMMAND = (sys.executable, "-c", "from agent.cli import main; main()", "demo")


def test_json_is_all_that_it_prints(tmp_path):
    report = tmp_path / "demo.html"
    done = subprocess.run(
        [*COMMAND, "--parts", "20", "--json", "--report", report],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["parts"] == 20
    assert answer["alarms_sent"] == answer["alarms_received"]
    assert answer["report"] == str(report)
    assert report.exists()
    assert done.stderr == ""


def test_ctrl_c_ends_it_with_a_summary(tmp_path):
    report = tmp_path / "demo.html"
    with subprocess.Popen(
        [*COMMAND, "--report", report], stdout=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith("NG "):
                break
        demo.send_signal(signal.SIGINT)
        rest = demo.stdout.read()
    assert demo.returncode == 0
    assert re.search(r"(\d+) sent, \1 received", rest)
    assert f"Pictures: {report}" in rest
    assert report.exists()
