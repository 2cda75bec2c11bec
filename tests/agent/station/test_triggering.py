"""Parts that are announced before their frames, through the real station and its ledger."""

import sqlite3
import threading
from contextlib import closing
from dataclasses import replace

import pytest
from pydantic import ValidationError

from agent.cameras.scripted import ScriptedCamera, scripted_frame
from agent.cameras.settings import LineSettings
from agent.clock import ManualClock
from agent.part import State
from agent.ports import Announcement
from agent.settings import load_config
from agent.station.run import run_station
from agent.station.station import Model
from agent.station.status import Status
from agent.triggers.scripted import ScriptedTriggers
from agent.triggers.software import SoftwareSettings, SoftwareTriggers
from engine.errors import ImageError, TriggerError
from engine.scripted_inspector import BrightnessInspector
from tests.agent.station.test_station import rows


class Belt:
    """Scripts of a trigger source and a camera that take turns, on a clock that stands still."""

    def __init__(self):
        self.clock = ManualClock()
        self.stop = threading.Event()
        self.ended = threading.Semaphore(0)
        self.triggers, self.frames = [], []

    def announce(self, part_id=None, *, count=None, is_trigger=True, after_s=0.0):
        """The camera goes on when the station has been told."""
        told = threading.Event()

        def announcement():
            self.clock.advance(after_s)
            self.source.push(
                Announcement(
                    at=self.clock.now(), part_id=part_id, count=count, is_trigger=is_trigger
                )
            )

        self.triggers += [announcement, told.set]
        self.frames.append(lambda: told.wait(60))

    def see(self, *frames, after_s=0.0):
        """The source goes on when the camera is asked for the next frame."""
        seen = threading.Event()
        self.frames += [lambda: self.clock.advance(after_s), *frames, seen.set]
        self.triggers.append(lambda: seen.wait(60))

    def decide(self):
        """The source goes on when one more part has ended."""
        self.triggers.append(lambda: self.ended.acquire(timeout=60))

    def run(
        self,
        config,
        inspector=None,
        parts=None,
        gives="trigger",
        *,
        fires=False,
        triggered=True,
        **line,
    ):
        settings = {gives: SoftwareSettings(min_ms=0, max_ms=50)}
        camera = replace(config.cameras[0], **settings, line=LineSettings(**line))
        self.source = Pushed(*self.triggers)
        self.camera = ScriptedCamera(*self.frames, fires=fires, triggered=triggered)
        self.statuses: list[Status] = []
        return run_station(
            replace(config, cameras=(camera,)),
            cameras=[self.camera],
            **{"triggers" if gives == "trigger" else gives: {"main": self.source}},
            inspector=inspector or BrightnessInspector(),
            model=Model(threshold=0.5),
            clock=self.clock,
            parts=parts,
            stop=self.stop,
            readers=[self.statuses.append],
            observers=[lambda _part: self.ended.release()],
        )


class Pushed(ScriptedTriggers):
    """A script whose steps may give an announcement of their own."""

    def push(self, announcement):
        self._script.insert(0, announcement)


@pytest.fixture
def belt():
    return Belt()


def test_announced_parts_get_their_frames_and_their_ids(belt, config):
    for number, part_id in enumerate(("a", "b", None)):
        belt.announce(part_id, count=number + 1)
        belt.see(scripted_frame(40 + 10 * number))
    summary = belt.run(config)
    assert [row[1:] for row in rows(config)] == [
        ("a", "OK", ""),
        ("b", "OK", ""),
        (None, "NG", "no part id came"),
    ]
    assert summary.triggers == summary.inspected == 3
    assert belt.statuses[-1].cameras["main"].unexpected_frames == 0


def test_a_part_without_a_frame_ends_and_what_comes_later_is_nobody_s(belt, config, eventually):
    belt.announce("a")
    belt.see(40)
    belt.announce("b", after_s=1.0)
    belt.frames.append(lambda: belt.clock.advance(0.2))
    belt.frames.append(lambda: eventually(lambda: belt.clock.waiting))
    belt.see(41)
    belt.announce("c", after_s=1.0)
    belt.see(42)
    belt.run(config)
    assert [row[1:3] for row in rows(config)] == [("a", "OK"), ("b", "NO_FRAME"), ("c", "OK")]
    last = belt.statuses[-1]
    assert last.cameras["main"].unexpected_frames == 1
    assert last.cameras["main"].counts[State.NO_FRAME] == 1


def test_of_a_camera_that_runs_freely_the_first_frame_in_the_window_is_the_part_s(belt, config):
    """Five frames, one part: nobody expects the others."""
    belt.see(40, 41, after_s=1.0)
    belt.announce("a", after_s=1.0)
    belt.see(42, 43, after_s=0.04)
    belt.see(44, after_s=1.0)
    belt.run(config, triggered=False)
    assert [row[1:3] for row in rows(config)] == [("a", "OK")]
    with closing(sqlite3.connect(config.ledger.path)) as ledger:
        assert ledger.execute("SELECT frame_number FROM triggers").fetchall() == [(42,)]
    last = belt.statuses[-1]
    assert last.cameras["main"].unexpected_frames == 0
    assert not any("given to no part" in why for why in last.faults)


def test_the_deadline_counts_from_the_trigger(belt, config):
    belt.announce("a")
    belt.see(40, after_s=0.04)
    belt.run(config, BrightnessInspector(lambda _pixels: belt.clock.advance(0.08)), deadline_ms=100)
    ((_, part, state, reason),) = rows(config)
    assert (part, state) == ("a", "TIMEOUT")
    assert "after the deadline" in reason


def test_a_camera_that_waits_for_the_agent_owes_one_frame_at_a_time(belt, config):
    belt.see(39)  # connected; nobody has asked for this one
    belt.announce("a", after_s=1.0)
    belt.announce("b", after_s=0.1)
    belt.see(40)  # of a, too late for it, in time for b
    belt.announce("c", after_s=0.1)
    belt.see(41)
    belt.run(config, fires=True)
    assert belt.camera.fired == 2
    assert sorted(row[1:] for row in rows(config)) == [
        ("a", "NO_FRAME", "no frame came within 50 ms of its trigger"),
        ("b", "NO_FRAME", "the camera still owes the frame of an earlier part"),
        ("c", "OK", ""),
    ]
    assert belt.statuses[-1].cameras["main"].unexpected_frames == 2


def test_a_part_that_was_announced_before_a_late_frame_came_does_not_get_it(belt, config):
    belt.see(39)
    belt.announce("a", after_s=1.0)
    late = threading.Event()

    def announced_earlier():
        at = belt.clock.now()
        late.wait(60)
        belt.source.push(Announcement(at=at, part_id="b"))

    belt.triggers += [lambda: belt.clock.advance(0.1), announced_earlier]
    belt.frames += [lambda: belt.clock.advance(0.2), 40, late.set]
    belt.announce("c", after_s=0.1)
    belt.see(41)
    belt.run(config, fires=True)
    states = {row[1]: row[2] for row in rows(config)}
    assert states == {"a": "NO_FRAME", "b": "NO_FRAME", "c": "OK"}


def test_a_frame_that_cannot_be_used_ends_its_part_as_error(belt, config):
    belt.announce("a")
    belt.see(replace(scripted_frame(40), problem="the frame is incomplete"))
    belt.announce("b", after_s=1.0)
    belt.see(ImageError("b.png", "is damaged"))
    belt.run(config)
    assert [row[1:3] for row in rows(config)] == [("a", "ERROR"), ("b", "ERROR")]


def test_an_id_that_comes_after_its_frame_is_that_part_s(belt, config):
    named = threading.Event()
    belt.announce(count=1)
    belt.see(40)
    belt.announce("a", count=1, is_trigger=False)
    belt.triggers.append(named.set)
    belt.run(config, BrightnessInspector(lambda _pixels: named.wait(60)))
    assert [row[1:] for row in rows(config)] == [("a", "OK", "")]


def test_frames_are_parts_and_another_source_names_them(belt, config):
    """The second code was not read: that part has no id, and the third has its own."""
    belt.announce("a", count=7)
    belt.see(40, after_s=0.02)
    belt.see(41, after_s=1.0)
    belt.announce("c", after_s=1.0)
    belt.see(42, after_s=0.02)
    belt.run(config, gives="part_ids")
    assert [row[1:] for row in rows(config)] == [
        ("a", "OK", ""),
        (None, "OK", "no part id came"),
        ("c", "OK", ""),
    ]
    with closing(sqlite3.connect(config.ledger.path)) as ledger:
        assert ledger.execute("SELECT count FROM triggers").fetchall() == [(7,), (None,), (None,)]


def test_a_frame_that_was_lost_takes_no_other_part_s_id(belt, config):
    belt.announce("a")
    belt.see(40, after_s=0.02)
    belt.announce("c", after_s=1.0)
    belt.see(42, after_s=0.02)
    belt.run(config, gives="part_ids")
    assert [row[1:3] for row in rows(config)] == [("a", "OK"), (None, "NO_FRAME"), ("c", "OK")]


def test_an_id_that_is_read_behind_the_camera_names_the_part_before(belt, config):
    read = threading.Event()
    belt.frames.append(40)
    belt.triggers.append(lambda: inspecting.wait(60))
    belt.announce("a")
    belt.triggers.append(read.set)
    inspecting = threading.Event()

    def inspect(_pixels):
        inspecting.set()
        read.wait(60)

    belt.run(config, BrightnessInspector(inspect), gives="part_ids")
    assert [row[1:] for row in rows(config)] == [("a", "OK", "")]


def test_triggers_that_were_missed_are_parts_too(belt, config):
    belt.announce("a", count=1)
    belt.see(40)
    belt.announce("d", count=4, after_s=1.0)
    belt.see(41)
    belt.run(config)
    assert [row[1:3] for row in rows(config)] == [
        ("a", "OK"),
        (None, "NO_FRAME"),
        (None, "NO_FRAME"),
        ("d", "OK"),
    ]
    assert any("2 triggers were not seen" in why for why in belt.statuses[-1].faults)


def test_the_last_part_that_is_wanted_gets_its_frame_and_no_further_one_begins(belt, config):
    for number, part_id in enumerate(("a", "b", "c")):
        belt.announce(part_id, count=number + 1)
        if part_id != "c":
            belt.see(40 + number)
    summary = belt.run(config, parts=2)
    assert [row[1:3] for row in rows(config)] == [("a", "OK"), ("b", "OK")]
    assert summary.triggers == 2
    assert belt.stop.is_set()


def test_at_the_end_what_waits_for_its_frame_has_none(belt, config):
    belt.announce("a")
    belt.run(config)
    assert [row[1:] for row in rows(config)] == [("a", "NO_FRAME", "the agent was stopping")]


def test_a_source_that_goes_away_is_said_once_and_retried(config, caplog):
    told, stop = threading.Event(), threading.Event()
    source = ScriptedTriggers(
        TriggerError("the PLC is away"), TriggerError("the PLC is away"), told.set
    )
    camera = replace(config.cameras[0], trigger=SoftwareSettings())
    run_station(
        replace(config, cameras=(camera,)),
        cameras=[ScriptedCamera(lambda: told.wait(60))],
        triggers={"main": source},
        inspector=BrightnessInspector(),
        model=Model(threshold=0.5),
        stop=stop,
    )
    assert source.entered == 3
    assert caplog.text.count("the PLC is away") == 1


def test_a_bug_in_a_source_ends_the_run(belt, config):
    failed = threading.Event()

    class Broken(ScriptedTriggers):
        def read(self):
            failed.set()
            raise RuntimeError("a bug")

    camera = replace(config.cameras[0], trigger=SoftwareSettings())
    with pytest.raises(RuntimeError, match="a bug"):
        run_station(
            replace(config, cameras=(camera,)),
            cameras=[ScriptedCamera(lambda: failed.wait(60))],
            triggers={"main": Broken()},
            inspector=BrightnessInspector(),
            model=Model(threshold=0.5),
        )


def test_parts_are_fired_from_this_process():
    stop = threading.Event()
    source = SoftwareTriggers(stop, ManualClock(now=7.0))
    with source:
        source.fire("a", count=3)
        assert source.read() == Announcement(at=7.0, part_id="a", count=3)
        stop.set()
        assert source.read() is None


def test_a_camera_s_trigger_is_configured(tmp_path):
    path = tmp_path / "agent.yaml"
    text = "agent: {id: a}\nbundle: {path: b}\nmqtt: {host: h}\ncamera: {type: conveyor, trigger: "
    path.write_text(text + "{type: software, min_ms: 5, max_ms: 80}}\n")
    (camera,) = load_config(path).cameras
    assert camera.trigger == SoftwareSettings(min_ms=5, max_ms=80)
    path.write_text(text + "{type: frames}}\n")
    assert load_config(path).cameras[0].trigger.type == "frames"
    path.write_text(text + "{type: software, min_ms: 80, max_ms: 5}}\n")
    with pytest.raises(Exception, match="min_ms should be less than max_ms"):
        load_config(path)


def test_a_decision_is_due_when_the_part_is_at_the_rejector(belt, config):
    """60 mm at 500 mm/s, less 20 ms for the rejector: 100 ms after the trigger."""
    belt.announce("a")
    belt.see(40, after_s=0.04)
    belt.decide()
    belt.announce("b", after_s=1.0)
    belt.see(41, after_s=0.04)
    takes = iter([0.05, 0.08])
    inspector = BrightnessInspector(lambda _pixels: belt.clock.advance(next(takes)))
    belt.run(config, inspector, reject_distance_mm=60, belt_mm_per_s=500, reject_lead_ms=20)
    assert [row[1:3] for row in rows(config)] == [("a", "OK"), ("b", "TIMEOUT")]
    with closing(sqlite3.connect(config.ledger.path)) as ledger:
        told = ledger.execute("SELECT late_s, decided_ns - deadline_ns FROM triggers").fetchall()
    assert told == [(None, -10_000_000), (pytest.approx(0.02), 20_000_000)]


def test_a_part_without_a_frame_is_late_too(belt, config):
    belt.announce("a")
    belt.frames.append(lambda: belt.clock.advance(0.2))
    belt.run(config, deadline_ms=100)
    with closing(sqlite3.connect(config.ledger.path)) as ledger:
        told = ledger.execute("SELECT state, late_s FROM triggers").fetchall()
    assert told == [("NO_FRAME", pytest.approx(0.1))]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"belt_mm_per_s": 500}, "go together; write both"),
        ({"deadline_ms": 50, "reject_lead_ms": 50}, "leaves no time for a verdict"),
        ({"reject_lead_ms": 50}, "leaves no time for a verdict"),
    ],
)
def test_what_gives_no_deadline_is_refused(keys, said):
    with pytest.raises(ValidationError, match=said):
        LineSettings(**keys)
