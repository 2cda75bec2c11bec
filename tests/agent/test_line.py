"""The line: every trigger ends in exactly one state, whatever camera, inspector and clock do."""

import json
import os
import sqlite3
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import sleep, time_ns
from types import TracebackType
from typing import Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agent.acquisition import Arrival, Handover
from agent.cameras.conveyor import ConveyorCamera, ConveyorSettings
from agent.cameras.folder import FolderCamera, FolderSettings
from agent.cameras.video import VideoCamera, VideoSettings
from agent.line import run_line
from agent.part import State
from agent.settings import Config, load_config
from agent.tally import Summary
from agent.verdict import Trigger, Verdict
from engine.errors import CameraError, ImageError, InspectionError
from engine.frame import Box, Frame, Inspection, Pixels
from tests import inspections

THRESHOLD = 0.5
PIXELS = np.zeros((8, 10, 3), np.uint8)
DATA = Path(os.environ.get("ATAC_DATA", Path(__file__).parents[3] / "shared" / "data"))
VIDEO = DATA / "video" / "bottle-detection.mp4"


def inspection(score: float) -> Inspection:
    return inspections.inspection(score, Box.around(PIXELS))


class BrightnessInspector:
    """The red of the first pixel is the score in percent; `before` may do something first."""

    def __init__(self, before: Callable[[Pixels], None] = lambda _pixels: None) -> None:
        self._before = before

    def inspect(self, pixels: Pixels) -> Inspection:
        self._before(pixels)
        return inspection(float(pixels[0, 0, 0]) / 100)


class ScriptedCamera:
    """A camera that does what a script says: a frame number, an error to raise, or a callable.

    Its frames have their number as the score in percent.
    """

    def __init__(self, *script: int | Exception | Callable[[], None], triggered: bool = True):
        self._script = list(script)
        self.triggered = triggered
        self.entered = 0

    def read(self) -> Frame | None:
        while self._script:
            match self._script.pop(0):
                case int() as number:
                    pixels = np.full_like(PIXELS, number)
                    return Frame(pixels=pixels, number=number, captured_ns=time_ns())
                case Exception() as error:
                    raise error
                case act:
                    act()
        return None

    silence_s = None
    is_live = False

    def renewed(self) -> Self:
        return self

    def part_id(self, number: int) -> str:
        return f"p{number}"

    def __enter__(self) -> Self:
        self.entered += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@pytest.fixture
def config(tmp_path) -> Config:
    """A configuration whose broker does not exist."""
    path = tmp_path / "agent.yaml"
    path.write_text(
        "agent: {id: test}\nbundle: {path: none}\ncamera: {type: conveyor}\n"
        "mqtt: {host: 127.0.0.1, port: 1}\n"
    )
    return load_config(path)


def rows(config: Config) -> list[tuple[int, str, str, str]]:
    """Sequence, part, state and reason of every trigger in the ledger's file."""
    connection = sqlite3.connect(config.ledger.path)
    try:
        return connection.execute(
            "SELECT sequence, part_id, state, reason FROM triggers ORDER BY sequence"
        ).fetchall()
    finally:
        connection.close()


def topics(config: Config) -> list[str]:
    connection = sqlite3.connect(config.ledger.path)
    try:
        return [t for (t,) in connection.execute("SELECT topic FROM outbox ORDER BY id")]
    finally:
        connection.close()


def ran(config: Config, camera, inspector=None, **options) -> Summary:
    """Run to the end and check what is always true."""
    summary = run_line(
        config,
        cameras=[camera],
        inspector=inspector or BrightnessInspector(),
        threshold=THRESHOLD,
        **options,
    )
    found = rows(config)
    assert sum(summary.counts.values()) == summary.triggers == len(found)
    assert [sequence for sequence, *_ in found] == list(range(1, len(found) + 1))
    for state in State:
        assert summary.counts[state] == sum(row[2] == state for row in found)
    return summary


def test_parts_are_judged_and_ng_ones_raise_alarms_with_pictures(config):
    seen: list[Verdict] = []
    summary = ran(config, ScriptedCamera(49, 50, 51, 52), watch=seen.append)
    # Numbers rise without gaps; the threshold itself still passes.
    assert [state for _, _, state, _ in rows(config)] == ["OK", "OK", "NG", "NG"]
    assert [part for _, part, _, _ in rows(config)] == ["p49", "p50", "p51", "p52"]
    assert summary.alarms == 2
    assert topics(config) == ["atac/test/alarm", "atac/test/thumbnail"] * 2
    assert [verdict.trigger.part_id for verdict in seen] == ["p49", "p50", "p51", "p52"]
    assert set(summary.latencies) == {
        "wait", "view_1", "pass_1", "attention", "inspect", "end_to_end",
    }  # fmt: skip
    assert summary.undelivered == 4


def test_the_first_frame_s_number_may_be_any(config):
    assert ran(config, ScriptedCamera(40)).counts[State.OK] == 1


def test_frames_that_the_camera_lost_end_as_no_frame(config):
    summary = ran(config, ScriptedCamera(0, 1, 4, 5))
    assert [(part, state) for _, part, state, _ in rows(config)] == [
        ("p0", "OK"), ("p1", "OK"), ("p2", "NO_FRAME"), ("p3", "NO_FRAME"), ("p4", "OK"),
        ("p5", "OK"),
    ]  # fmt: skip
    assert rows(config)[2][3] == "the camera lost frame 2"
    assert summary.alarms == 2


def test_a_camera_that_restarts_its_count_has_lost_nothing(config):
    summary = ran(config, ScriptedCamera(7, 8, 0, 1, 4))
    assert summary.counts[State.OK] == 5
    assert [part for _, part, state, _ in rows(config) if state == "NO_FRAME"] == ["p2", "p3"]


def test_a_huge_jump_of_the_frame_number_is_a_restart_not_a_million_parts(config, caplog):
    class Jumping(ScriptedCamera):
        def read(self) -> Frame | None:
            frame = super().read()
            if frame is not None and frame.number == 2:
                return Frame(pixels=frame.pixels, number=2**31, captured_ns=frame.captured_ns)
            return frame

    summary = ran(config, Jumping(0, 1, 2))
    assert summary.counts[State.NO_FRAME] == 0
    assert "jump from 1 to 2147483648" in caplog.text


def test_an_unusable_picture_ends_as_error_and_the_line_goes_on(config):
    summary = ran(config, ScriptedCamera(0, ImageError("1.png", "is damaged"), 2))
    assert [(part, state, reason) for _, part, state, reason in rows(config)] == [
        ("p0", "OK", ""),
        ("p1", "ERROR", "1.png: is damaged"),
        ("p2", "OK", ""),
    ]
    assert summary.alarms == 1
    assert topics(config) == ["atac/test/alarm"]  # there is no picture to show


def test_a_camera_that_goes_away_is_said_once_and_retried(config, caplog):
    camera = ScriptedCamera(0, CameraError("gone"), CameraError("gone"), 1, CameraError("off"), 2)
    summary = ran(config, camera)
    assert summary.counts[State.OK] == 3
    assert camera.entered == 4
    said = [record.message for record in caplog.records if record.name == "atac_agent.camera"]
    assert said == [
        "camera main: gone; trying again until it is back",
        "camera main: is back",
        "camera main: off; trying again until it is back",
        "camera main: is back",
    ]


@pytest.mark.parametrize(
    "error", [InspectionError("the score is nan"), ZeroDivisionError("oops"), MemoryError()]
)
def test_an_inspector_that_fails_ends_its_part_as_error(config, error):
    def fail_on_one(pixels: Pixels) -> None:
        if pixels[0, 0, 0] == 1:
            raise error

    summary = ran(config, ScriptedCamera(0, 1, 2), BrightnessInspector(fail_on_one))
    assert [state for _, _, state, _ in rows(config)] == ["OK", "ERROR", "OK"]
    assert str(error) in rows(config)[1][3]
    assert summary.alarms == 1
    assert topics(config) == ["atac/test/alarm", "atac/test/thumbnail"]


def with_line(config: Config, tmp_path: Path, **line) -> Config:
    text = (tmp_path / "agent.yaml").read_text()
    keys = ", ".join(f"{key}: {value}" for key, value in line.items())
    (tmp_path / "late.yaml").write_text(f"{text}line: {{{keys}}}\n")
    return load_config(tmp_path / "late.yaml")


@pytest.mark.parametrize(("fail_safe", "alarms"), [("reject", 2), ("pass", 1)])
def test_a_late_verdict_is_a_timeout_with_its_result_beside_it(config, tmp_path, fail_safe, alarms):
    config = with_line(config, tmp_path, deadline_ms=500, fail_safe=fail_safe)

    def dawdle(pixels: Pixels) -> None:
        if pixels[0, 0, 0] == 60:
            sleep(0.55)

    summary = ran(config, ScriptedCamera(59, 60), BrightnessInspector(dawdle))
    assert [state for _, _, state, _ in rows(config)] == ["NG", "TIMEOUT"]
    assert rows(config)[1][3].startswith("NG came ")
    assert summary.alarms == alarms
    connection = sqlite3.connect(config.ledger.path)
    ((score, late_state, deadline, decided),) = connection.execute(
        "SELECT score, late_state, deadline_ns, decided_ns FROM triggers WHERE state = 'TIMEOUT'"
    ).fetchall()
    told = [
        json.loads(payload)
        for (payload,) in connection.execute(
            "SELECT payload FROM outbox JOIN payloads USING (id) WHERE topic LIKE '%alarm'"
        )
    ]
    connection.close()
    assert [(part["state"], part["late_state"]) for part in told] == [
        ("NG", None),
        ("TIMEOUT", "NG"),
    ][:alarms]
    assert late_state == "NG"
    assert score == pytest.approx(0.6)
    assert decided > deadline


def test_a_part_whose_deadline_passed_while_it_waited_is_not_inspected(config, tmp_path):
    config = with_line(config, tmp_path, deadline_ms=300)
    inspected = []

    def dawdle(pixels: Pixels) -> None:
        inspected.append(int(pixels[0, 0, 0]))
        if pixels[0, 0, 0] == 0:
            sleep(0.4)

    ran(config, ScriptedCamera(0, 1), BrightnessInspector(dawdle))
    assert [state for _, _, state, _ in rows(config)] == ["TIMEOUT", "TIMEOUT"]
    assert inspected == [0]
    assert "before its inspection began" in rows(config)[1][3]


def test_a_free_running_camera_keeps_the_newest_frame_and_counts_the_others(config):
    """While frame 0 is inspected, 1 to 8 arrive: the newest of them is next."""
    in_hand, delivered = threading.Event(), threading.Event()

    def hold(pixels: Pixels) -> None:
        if pixels[0, 0, 0] == 0:
            in_hand.set()
            delivered.wait(10)

    camera = ScriptedCamera(
        0, lambda: in_hand.wait(10) and None, *range(1, 9), delivered.set, triggered=False
    )
    summary = ran(config, camera, BrightnessInspector(hold))
    assert [part for _, part, state, _ in rows(config) if state == "OK"] == ["p0", "p8"]
    assert summary.counts[State.DROPPED] == 7
    assert summary.alarms == 0


def test_a_triggered_camera_s_parts_all_wait_for_their_inspection(config):
    inspector = BrightnessInspector(lambda _pixels: sleep(0.01))
    assert ran(config, ScriptedCamera(*range(20)), inspector).counts[State.OK] == 20


def test_with_two_lanes_the_ledger_keeps_the_order_of_the_parts(config):
    second_done = threading.Event()

    def hold(pixels: Pixels) -> None:
        if pixels[0, 0, 0] == 0:
            assert second_done.wait(10)
        second_done.set()

    seen: list[int] = []
    summary = ran(
        config,
        ScriptedCamera(*range(20)),
        BrightnessInspector(hold),
        lanes=2,
        watch=lambda verdict: seen.append(verdict.trigger.sequence),
    )
    assert summary.counts[State.OK] == 20
    assert seen == list(range(1, 21))


def test_a_verdict_that_the_part_before_made_late_is_a_timeout(config, tmp_path):
    config = with_line(config, tmp_path, deadline_ms=400)
    second_done = threading.Event()

    def hold(pixels: Pixels) -> None:
        if pixels[0, 0, 0] == 59:
            assert second_done.wait(10)
            sleep(0.5)
        second_done.set()

    ran(config, ScriptedCamera(59, 60), BrightnessInspector(hold), lanes=2)
    assert [state for _, _, state, _ in rows(config)] == ["TIMEOUT", "TIMEOUT"]
    assert rows(config)[1][3].startswith("NG came ")


@pytest.mark.parametrize("triggered", [True, False])
def test_the_run_ends_after_so_many_parts(config, triggered):
    camera = ScriptedCamera(*range(0, 40, 3), triggered=triggered)
    assert ran(config, camera, parts=8).triggers == 8


def test_stopping_finishes_the_part_in_hand_and_records_it(config):
    stop = threading.Event()
    inspector = BrightnessInspector(lambda _pixels: stop.set())
    camera = ConveyorCamera(ConveyorSettings(parts_per_minute=600), stop)
    summary = ran(config, camera, inspector, stop=stop)
    assert 1 <= summary.triggers <= 4
    assert summary.counts[State.OK] + summary.counts[State.NG] >= 1


def test_sequences_go_on_after_a_restart(config):
    first = ran(config, ScriptedCamera(0, 1))
    second = run_line(
        config, cameras=[ScriptedCamera(0)], inspector=BrightnessInspector(), threshold=THRESHOLD
    )
    assert second.epoch == first.epoch
    assert second.triggers == 1
    assert [sequence for sequence, *_ in rows(config)] == [1, 2, 3]


def test_an_error_in_a_thread_ends_the_run_and_is_raised(config):
    with pytest.raises(RuntimeError, match="a bug"):
        run_line(
            config,
            cameras=[ScriptedCamera(0, RuntimeError("a bug"), 1)],
            inspector=BrightnessInspector(),
            threshold=THRESHOLD,
        )

    def watch(_verdict: Verdict) -> None:
        raise RuntimeError("another bug")

    with pytest.raises(RuntimeError, match="another bug"):
        run_line(
            config,
            cameras=[ScriptedCamera(*range(100))],
            inspector=BrightnessInspector(),
            threshold=THRESHOLD,
            watch=watch,
        )


def test_real_images_with_a_damaged_one_and_a_lost_folder_are_all_accounted_for(config, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for index in range(6):
        Image.fromarray(np.full((20, 30, 3), 30, np.uint8)).save(folder / f"{index}.png")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:-20])
    moved = threading.Event()

    def lose_the_folder(_pixels: Pixels) -> None:
        if not moved.is_set():
            moved.set()
            folder.rename(tmp_path / "away")
            threading.Timer(0.5, (tmp_path / "away").rename, [folder]).start()

    camera = FolderCamera(FolderSettings(path=folder))
    summary = ran(config, camera, BrightnessInspector(lose_the_folder))
    assert [part for _, part, _, _ in rows(config)] == [f"{index}.png" for index in range(6)]
    assert summary.counts[State.OK] == 5
    assert "is damaged" in next(r for _, p, s, r in rows(config) if s == "ERROR")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["put", "replace", "take"]), max_size=30))
def test_what_is_handed_over_is_taken_or_given_back_once_and_in_order(actions):
    handover, taken, returned, sent = Handover(["main"]), [], [], 0
    arrivals = iter(handover)
    waiting = 0
    for action in actions:
        if (action == "take" and not waiting) or (action == "put" and waiting >= 2):
            continue  # these would wait
        if action == "take":
            taken.append(next(arrivals).trigger.sequence)
            waiting -= 1
            continue
        sent += 1
        trigger = Trigger(sequence=sent, camera="main", part_id="", triggered_ns=0)
        frame = Frame(pixels=PIXELS, number=sent, captured_ns=0)
        back = getattr(handover, action)(Arrival(trigger=trigger, frame=frame, received=0.0))
        waiting += back is None
        if back is not None:
            returned.append(back.trigger.sequence)
    handover.close()
    taken += [arrival.trigger.sequence for arrival in arrivals]
    assert sorted(taken + returned) == list(range(1, sent + 1))
    assert all(a < b for a, b in pairwise(taken))


@pytest.mark.data
def test_every_frame_of_a_real_video_at_its_own_rate_is_accounted_for(config):
    """The first 120 frames; benchmarks run all 1 189."""
    if not VIDEO.is_file():
        pytest.skip(f"needs {VIDEO}; set ATAC_DATA")
    camera = VideoCamera(VideoSettings(path=VIDEO))
    inspector = BrightnessInspector(lambda _pixels: sleep(0.08))
    summary = ran(config, camera, inspector, parts=120)
    assert summary.triggers == 120
    assert summary.counts[State.DROPPED] > 20
    assert [part for _, part, _, _ in rows(config)] == [f"frame-{n:06d}" for n in range(120)]
