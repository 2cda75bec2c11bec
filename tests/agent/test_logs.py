"""The log: for people or as JSON, one event a line, and not the same one for ever."""

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from agent.demo import BUNDLE
from agent.logs import JsonLines, RateLimit
from agent.runtime import calibrated, child_setup
from agent.settings import BundleSettings
from engine.bundle import open_bundle

ROOT = Path(__file__).parents[2]


class Time:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def log(time):
    """A logger whose lines are in `log.lines()`."""
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    limit = RateLimit(time)
    handler.addFilter(limit)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("atac_agent.test")
    logger.addHandler(handler)
    logger.propagate = False
    logger.limit = limit
    logger.lines = lambda: [json.loads(line) for line in output.getvalue().splitlines()]
    yield logger
    logger.removeHandler(handler)


def test_an_event_is_one_line(log):
    log.warning("camera %s:\n%s", "main", 'the "cable" is out')
    (event,) = log.lines()
    assert event.pop("time").endswith("+00:00")
    assert event == {
        "level": "warning",
        "logger": "atac_agent.test",
        "message": 'camera main:\nthe "cable" is out',
        "thread": "MainThread",
    }


def test_an_error_has_its_traceback_in_the_same_line_and_no_password(log):
    try:
        int("rtsp://admin:hunter2@10.0.0.5/stream")
    except ValueError:
        log.exception("http://u:hunter2@host/x failed")
    (event,) = log.lines()
    assert event["error"].startswith(
        "ValueError: invalid literal for int() with base 10: 'rtsp://…@"
    )
    assert "Traceback" in event["traceback"]
    assert "hunter2" not in json.dumps(event)


def test_one_that_comes_again_and_again_is_held_back_and_counted(log, time):
    for _ in range(1000):
        log.warning("part %s is late", 1)
    assert len(log.lines()) == 10
    log.warning("another kind")
    assert len(log.lines()) == 11
    time.now = 10.0
    log.warning("part %s is late", 2)
    assert log.lines()[-1]["suppressed"] == 990
    time.now = 1000.0
    for _ in range(1000):
        log.warning("part %s is late", 3)
    assert len(log.lines()) == 22


def test_many_kinds_take_little_memory(log):
    for number in range(600):
        log.warning(f"kind {number}")  # noqa: G004 - each is a kind of its own
    assert len(log.limit._seen) == 500


def test_a_run_writes_json_to_its_last_word(tmp_path):
    (tmp_path / "agent.yaml").write_text(
        f"agent: {{id: a}}\nbundle: {{path: {ROOT / 'agent' / 'demo_bundle'}}}\n"
        "camera: {type: conveyor, parts: 3}\n"
        "mqtt: {host: 127.0.0.1, port: 1, drain_s: 0}\n"
        "services: [{type: metrics, token_file: none}]\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from agent.cli import main; main()"),
            *("run", "--log", "json", "--config", tmp_path / "agent.yaml"),
        ],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    events = [json.loads(line) for line in done.stderr.splitlines()]
    messages = [event["message"] for event in events]
    assert "inspects with onnxruntime cpu fp32" in messages
    assert events[-1]["level"] == "critical"
    assert messages[-1].startswith("metrics.token_file: ")


def test_a_child_that_is_started_later_writes_its_log_as_the_agent_does(monkeypatch):
    bundle = open_bundle(BUNDLE)
    settings = BundleSettings(path=BUNDLE)
    runtime = calibrated(bundle, settings)[1]
    root = logging.getLogger()
    for formatter, form in ((JsonLines(), "json"), (logging.Formatter(), "text")):
        handler = logging.StreamHandler()
        handler.setFormatter(formatter)
        monkeypatch.setattr(root, "handlers", [handler])
        assert child_setup(bundle, settings, runtime).log == form
