"""The station: every trigger ends in exactly one state, whatever camera, inspector and clock do."""

import itertools
import os
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agent.cameras.conveyor import ConveyorCamera, ConveyorSettings
from agent.cameras.folder import FolderCamera, FolderSettings
from agent.cameras.scripted import ScriptedCamera
from agent.cameras.video import VideoCamera, VideoSettings
from agent.clock import ManualClock
from agent.part import Part, State
from agent.ports import CameraContext
from agent.settings import Config, load_config
from agent.station.run import run_station
from agent.station.station import Model
from agent.station.summary import Summary
from engine.errors import CameraError, ImageError, InspectionError
from engine.frame import Frame, Pixels
from engine.scripted_inspector import BrightnessInspector

THRESHOLD = 0.5
DATA = Path(os.environ.get("ATAC_DATA", Path(__file__).parents[4] / "shared" / "data"))
VIDEO = DATA / "video" / "bottle-detection.mp4"


def rows(config: Config) -> list[tuple[int, str, str, str]]:
    """Sequence, part, state and reason of every trigger in the ledger's file."""
    connection = sqlite3.connect(config.ledger.path)
    try:
        return connection.execute(
            "SELECT sequence, part_id, state, reason FROM triggers ORDER BY sequence"
        ).fetchall()
    finally:
        connection.close()


def items(config: Config) -> list[str]:
    connection = sqlite3.connect(config.ledger.path)
    try:
        return [t for (t,) in connection.execute("SELECT item FROM deliveries ORDER BY id")]
    finally:
        connection.close()


def ran(config: Config, camera, inspector=None, **options) -> Summary:
    """Run to the end and check what is always true."""
    workers = options.pop("workers", 1)
    summary = run_station(
        config,
        cameras=[camera],
        inspector=inspector or BrightnessInspector(),
        model=Model(threshold=THRESHOLD, workers=workers),
        **options,
    )
    found = rows(config)
    assert sum(summary.counts.values()) == summary.triggers == len(found)
    assert [sequence for sequence, *_ in found] == list(range(1, len(found) + 1))
    for state in State:
        assert summary.counts[state] == sum(row[2] == state for row in found)
    return summary


def test_parts_are_judged_and_ng_ones_raise_alarms_with_pictures(config):
    seen: list[Part] = []
    summary = ran(config, ScriptedCamera(49, 50, 51, 52), observers=[seen.append])
    # Numbers rise without gaps; the threshold itself still passes.
    assert [state for _, _, state, _ in rows(config)] == ["OK", "OK", "NG", "NG"]
    assert [part for _, part, _, _ in rows(config)] == ["p49", "p50", "p51", "p52"]
    assert summary.alarms == 2
    assert items(config) == ["alarm", "thumbnail"] * 2
    assert [part.part_id for part in seen] == ["p49", "p50", "p51", "p52"]
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
    assert items(config) == ["alarm"]  # there is no picture to show


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
    assert items(config) == ["alarm", "thumbnail"]


def with_line(config: Config, tmp_path: Path, **line) -> Config:
    text = (tmp_path / "agent.yaml").read_text()
    keys = ", ".join(f"{key}: {value}" for key, value in line.items())
    (tmp_path / "late.yaml").write_text(f"{text}line: {{{keys}}}\n")
    return load_config(tmp_path / "late.yaml")


@pytest.mark.parametrize(("fail_safe", "alarms"), [("reject", 2), ("pass", 1)])
def test_a_late_verdict_is_a_timeout_with_its_result_beside_it(config, tmp_path, fail_safe, alarms):
    config, clock = with_line(config, tmp_path, deadline_ms=500, fail_safe=fail_safe), ManualClock()

    def dawdle(pixels: Pixels) -> None:
        if pixels[0, 0, 0] == 60:
            clock.advance(0.55)

    summary = ran(
        config, ScriptedCamera(59, 60, triggered=True), BrightnessInspector(dawdle), clock=clock
    )
    assert [state for _, _, state, _ in rows(config)] == ["NG", "TIMEOUT"]
    assert rows(config)[1][3].startswith("NG came ")
    assert summary.alarms == alarms
    connection = sqlite3.connect(config.ledger.path)
    ((score, late_state, late_s, deadline, decided),) = connection.execute(
        "SELECT score, late_state, late_s, deadline_ns, decided_ns FROM triggers"
        " WHERE state = 'TIMEOUT'"
    ).fetchall()
    told = connection.execute(
        "SELECT triggers.state, late_state FROM triggers JOIN deliveries USING (epoch, sequence)"
        " WHERE item = 'alarm'"
    ).fetchall()
    connection.close()
    assert (
        told
        == [
            ("NG", None),
            ("TIMEOUT", "NG"),
        ][:alarms]
    )
    assert late_state == "NG"
    assert late_s == pytest.approx(0.05)
    assert score == pytest.approx(0.6)
    assert decided > deadline


def test_a_part_whose_deadline_passed_while_it_waited_is_not_inspected(config, tmp_path):
    config, clock = with_line(config, tmp_path, deadline_ms=300), ManualClock()
    inspected, waits = [], threading.Event()

    def dawdle(pixels: Pixels) -> None:
        inspected.append(int(pixels[0, 0, 0]))
        assert waits.wait(60)
        clock.advance(0.4)

    ran(config, ScriptedCamera(0, 1, waits.set), BrightnessInspector(dawdle), clock=clock)
    assert [state for _, _, state, _ in rows(config)] == ["TIMEOUT", "TIMEOUT"]
    assert inspected == [0]
    assert "before its inspection began" in rows(config)[1][3]


@pytest.mark.parametrize(("fail_safe", "alarms"), [("reject", 7), ("pass", 0)])
def test_a_free_running_camera_keeps_the_newest_frame_and_counts_the_others(
    config, tmp_path, fail_safe, alarms
):
    """While frame 0 is inspected, 1 to 8 arrive: the newest of them is next."""
    config = with_line(config, tmp_path, fail_safe=fail_safe)
    in_hand, delivered = threading.Event(), threading.Event()

    def hold(pixels: Pixels) -> None:
        if pixels[0, 0, 0] == 0:
            in_hand.set()
            delivered.wait(60)

    camera = ScriptedCamera(
        0, lambda: in_hand.wait(60) and None, *range(1, 9), delivered.set, triggered=False
    )
    summary = ran(config, camera, BrightnessInspector(hold))
    assert [part for _, part, state, _ in rows(config) if state == "OK"] == ["p0", "p8"]
    assert summary.counts[State.DROPPED] == 7
    assert summary.inspected == 2
    assert summary.alarms == alarms
    assert items(config) == ["alarm"] * alarms  # a part that nobody looked at has no picture


def test_a_triggered_camera_s_parts_all_wait_for_their_inspection(config):
    inspector = BrightnessInspector()
    assert ran(config, ScriptedCamera(*range(20)), inspector).counts[State.OK] == 20


def test_with_two_workers_the_ledger_keeps_the_order_of_the_parts(config):
    second_done = threading.Event()

    def hold(pixels: Pixels) -> None:
        if pixels[0, 0, 0] == 0:
            assert second_done.wait(60)
        second_done.set()

    seen: list[int] = []
    summary = ran(
        config,
        ScriptedCamera(*range(20)),
        BrightnessInspector(hold),
        workers=2,
        observers=[lambda part: seen.append(part.trigger.sequence)],
    )
    assert summary.counts[State.OK] == 20
    assert seen == list(range(1, 21))


def test_a_verdict_that_the_part_before_made_late_is_a_timeout(config, tmp_path):
    config, clock = with_line(config, tmp_path, deadline_ms=400), ManualClock()
    second_done = threading.Event()

    def hold(pixels: Pixels) -> None:
        if pixels[0, 0, 0] == 59:
            assert second_done.wait(60)
            clock.advance(0.5)
        second_done.set()

    ran(config, ScriptedCamera(59, 60), BrightnessInspector(hold), workers=2, clock=clock)
    assert [state for _, _, state, _ in rows(config)] == ["TIMEOUT", "TIMEOUT"]
    assert rows(config)[1][3].startswith("NG came ")


@pytest.mark.parametrize("triggered", [True, False])
def test_the_run_ends_after_so_many_parts(config, triggered):
    camera = ScriptedCamera(*range(0, 40, 3), triggered=triggered)
    assert ran(config, camera, parts=8).triggers == 8


def test_stopping_finishes_the_part_in_hand_and_records_it(config):
    stop = threading.Event()
    inspector = BrightnessInspector(lambda _pixels: stop.set())
    camera = ConveyorCamera(ConveyorSettings(parts_per_minute=600), CameraContext(stop=stop))
    summary = ran(config, camera, inspector, stop=stop)
    assert 1 <= summary.triggers <= 4
    assert summary.counts[State.OK] + summary.counts[State.NG] >= 1


def test_sequences_go_on_after_a_restart(config):
    first = ran(config, ScriptedCamera(0, 1))
    second = run_station(
        config,
        cameras=[ScriptedCamera(0)],
        inspector=BrightnessInspector(),
        model=Model(threshold=THRESHOLD),
    )
    assert second.epoch == first.epoch
    assert second.triggers == 1
    assert [sequence for sequence, *_ in rows(config)] == [1, 2, 3]


def test_an_error_in_a_camera_s_thread_ends_the_run_and_is_raised(config):
    with pytest.raises(RuntimeError, match="a bug"):
        run_station(
            config,
            cameras=[ScriptedCamera(0, RuntimeError("a bug"), 1)],
            inspector=BrightnessInspector(),
            model=Model(threshold=THRESHOLD),
        )


def test_an_observer_that_fails_is_told_no_more_and_costs_no_part(config, caplog):
    seen = []

    def watch(part: Part) -> None:
        seen.append(part)
        raise RuntimeError("another bug")

    summary = ran(config, ScriptedCamera(*range(20)), observers=[watch])
    assert summary.counts[State.OK] == 20
    assert len(seen) == 1
    assert "another bug" in caplog.text


def test_a_part_that_its_camera_cannot_name_has_a_name_that_never_comes_again(config):
    class Nameless(ScriptedCamera):
        def part_id(self, _number: int) -> None:
            return None

    for _ in range(2):
        run_station(
            config,
            cameras=[Nameless(0, 1)],
            inspector=BrightnessInspector(),
            model=Model(threshold=THRESHOLD),
        )
    names = [part for _, part, _, _ in rows(config)]
    assert len(set(names)) == 4
    assert [name.partition("-")[2] for name in names] == ["000001", "000002", "000003", "000004"]


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

    camera = FolderCamera(FolderSettings(path=folder), CameraContext())
    summary = ran(config, camera, BrightnessInspector(lose_the_folder))
    assert [part for _, part, _, _ in rows(config)] == [f"{index}.png" for index in range(6)]
    assert summary.counts[State.OK] == 5
    assert "is damaged" in next(r for _, p, s, r in rows(config) if s == "ERROR")


@pytest.mark.data
def test_every_frame_of_a_real_video_at_its_own_rate_is_accounted_for(config):
    """The first 40 frames; benchmarks run all 1 189."""
    if not VIDEO.is_file():
        pytest.skip(f"needs {VIDEO}; set ATAC_DATA")
    read, asked = threading.Semaphore(0), itertools.count(1)

    class Counted(VideoCamera):
        def read(self) -> Frame | None:
            read.release(1 if next(asked) < 40 else 100)
            return super().read()

    def dawdle(_pixels: Pixels) -> None:
        """Until two more frames have come, or the video has been read to the last one wanted."""
        for _ in range(2):
            read.acquire(timeout=2)

    camera = Counted(VideoSettings(path=VIDEO), CameraContext())
    inspector = BrightnessInspector(dawdle)
    summary = ran(config, camera, inspector, parts=40)
    assert summary.triggers == 40
    assert summary.counts[State.DROPPED] > 6
    assert [sequence for sequence, *_ in rows(config)] == list(range(1, 41))
