"""Windows that are learnt from the line, and what becomes of the configuration."""

import threading

import pytest

from agent.learning import learn
from agent.mqtt.link import Link
from agent.mqtt.message import Message
from agent.settings import load_config
from agent.settings_file import edit
from agent.triggers.learning import learnt
from engine.errors import ConfigurationError

HEAD = "agent: {id: a}\nbundle: {path: b}\nmqtt: {host: h}\n"


def test_a_window_is_what_was_seen_and_half_of_it_more():
    announced = [0.0, 1.0, 2.0, 3.0]
    found = learnt(announced, [0.030, 1.050, 2.040, 2.060])
    assert (found.min_ms, found.max_ms) == (20, 60)
    assert (found.paired, found.alone, found.unexpected) == (3, 1, 1)
    assert found.delays_ms == pytest.approx((30, 40, 50))
    assert found.nearest_ms == pytest.approx(1000)
    assert not found.overlaps


def test_at_least_five_milliseconds_are_added_and_no_window_begins_before_its_trigger():
    found = learnt([0.0, 1.0], [0.002, 1.003])
    assert (found.min_ms, found.max_ms) == (0, 8)


def test_a_reader_behind_the_camera_has_a_window_below_zero():
    found = learnt([0.10, 1.12, 2.11], [0.0, 1.0, 2.0], may_precede=True)
    assert (found.min_ms, found.max_ms) == (-130, -90)


def test_a_window_wider_than_the_time_between_parts_is_none():
    assert learnt([0.0, 0.1, 0.2], [0.001, 0.199, 0.250]).overlaps
    assert learnt([1.0], [0.5]) is None
    assert learnt([], [0.5]) is None


BLOCK = """camera:  # ours
  type: conveyor
  trigger:
    type: software  # by hand
    max_ms: 40   # measured
line: {}
"""
FLOW = "camera: {type: conveyor, trigger: {type: software}}  # short\n"
WINDOWS = "camera:\r\n  type: conveyor\r\n  trigger:\r\n    type: software\r\n"


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        (BLOCK, "by hand\n    max_ms: 40 ", "by hand\n    min_ms: 20\n    max_ms: 60 "),
        (FLOW, "software}", "software, min_ms: 20, max_ms: 60}"),
        (WINDOWS, "software\r\n", "software\r\n    min_ms: 20\r\n    max_ms: 60\r\n"),
        (FLOW.rstrip(), "software}", "software, min_ms: 20, max_ms: 60}"),
        (BLOCK.partition("  #")[0] + "\n  type: conveyor\n  trigger:\n    type: software",
         "software", "software\n    min_ms: 20\n    max_ms: 60"),
    ],
)  # fmt: skip
def test_a_configuration_keeps_its_comments(tmp_path, text, old, new):
    path = tmp_path / "agent.yaml"
    path.write_bytes((HEAD + text).encode())
    path.chmod(0o640)
    assert edit(path, ("camera", "trigger"), {"min_ms": 20.0, "max_ms": 60.0}) == [
        "min_ms: 20",
        "max_ms: 60",
    ]
    assert path.read_bytes().decode() == HEAD + text.replace(old, new)
    assert path.stat().st_mode & 0o777 == 0o640
    trigger = load_config(path).cameras[0].trigger
    assert (trigger.min_ms, trigger.max_ms) == (20, 60)
    assert list(tmp_path.iterdir()) == [path]


def test_a_configuration_that_cannot_be_written_stays_and_the_lines_are_said(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text(HEAD + "camera: {type: conveyor, trigger: {type: software}}\n")
    (tmp_path / ".agent.yaml.new").mkdir()
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="write min_ms: 20 yourself"):
        edit(path, ("camera", "trigger"), {"min_ms": 20.0})
    assert path.read_bytes() == before


@pytest.mark.broker
def test_windows_are_learnt_from_a_broker_and_a_camera(broker, tmp_path):
    """A folder's pictures follow their messages; the windows land in the configuration."""
    from PIL import Image

    path, folder = tmp_path / "agent.yaml", tmp_path / "parts"
    folder.mkdir()
    path.write_text(
        f"{HEAD}cameras:\n  - name: top\n    type: folder\n    path: parts\n"
        "    after_last: watch\n    trigger:\n      type: mqtt  # the gateway\n"
        f"      host: {broker.host}\n      port: {broker.port}\n      topic: part\n"
    )
    over = threading.Event()

    def line():
        """Parts every 0.4 s, until the window is learnt."""
        number = 0
        with Link(broker.settings, "line") as link:
            while not over.wait(0.35):
                link.publish(Message(topic="part", payload=b"A"))
                over.wait(0.05)
                number += 1
                Image.new("RGB", (8, 8), (number % 250, 0, 0)).save(folder / f".{number:04}.png")
                (folder / f".{number:04}.png").rename(folder / f"{number:04}.png")

    running = threading.Thread(target=line)
    running.start()
    try:
        (finding,) = learn(path, 4, patience_s=20)
    finally:
        over.set()
        running.join()
    assert "top: " in finding.message
    if finding.level != "fail":  # a machine that stalls for the time of a part learns nothing
        trigger = load_config(path).cameras[0].trigger
        assert f"written: min_ms: {trigger.min_ms:g} max_ms: {trigger.max_ms:g}" in finding.message
        assert "# the gateway" in path.read_text()


def test_what_cannot_be_learnt_is_said(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text(HEAD + "camera: {type: conveyor}\n")
    (finding,) = learn(path, 4)
    assert (finding.level, finding.check) == ("warn", "trigger")
    path.write_text(HEAD + "camera: {type: conveyor, trigger: {type: software}}\n")
    (finding,) = learn(path, 4, patience_s=0.1)
    assert finding.level == "fail"
    assert "0 triggers and " in finding.message
    path.write_text(HEAD)
    (finding,) = learn(path, 4)
    assert (finding.level, finding.check) == ("fail", "configuration")
