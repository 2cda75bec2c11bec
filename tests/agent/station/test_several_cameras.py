"""Several cameras in one agent: served in turns, none held up by another, all accounted for."""

import json
import sqlite3
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

from agent.cameras.conveyor import ConveyorCamera, ConveyorSettings
from agent.cameras.folder import FolderCamera, FolderSettings
from agent.cameras.scripted import ScriptedCamera
from agent.cameras.settings import LineSettings
from agent.clock import ManualClock
from agent.part import State
from agent.ports import CameraContext
from agent.settings import AgentSettings, BundleSettings, Config, LedgerSettings
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.run import run_station
from agent.station.station import Model
from engine.errors import CameraError
from engine.scripted_inspector import BrightnessInspector


def configured(folder, *cameras, **changes):
    config = Config(
        agent=AgentSettings(id="line-3"),
        bundle=BundleSettings(path=folder),
        cameras=cameras,
        sinks=(MqttSettings(host="127.0.0.1", port=1, drain_s=0),),
        ledger=LedgerSettings(path=folder / "ledger.sqlite"),
    )
    return replace(config, **changes)


def counted(config):
    """Camera, state and count, as the ledger's rows have them and as its tally does."""
    connection = sqlite3.connect(config.ledger.path)
    try:
        rows = connection.execute(
            "SELECT camera, state, count(*) FROM triggers GROUP BY 1, 2 ORDER BY 1, 2"
        ).fetchall()
        tally = connection.execute(
            "SELECT camera, state, sum(ended) FROM tally GROUP BY 1, 2 ORDER BY 1, 2"
        ).fetchall()
    finally:
        connection.close()
    assert rows == tally
    return {(camera, State(state)): count for camera, state, count in rows}


def ran(config, cameras, inspector=None, **options):
    """Run to the end, and hold the summary against the ledger."""
    model = Model(threshold=0.5, workers=options.pop("workers", 1))
    summary = run_station(
        config,
        cameras=cameras,
        inspector=inspector or BrightnessInspector(),
        model=model,
        **options,
    )
    found = counted(config)
    assert summary.triggers == sum(summary.counts.values()) == sum(found.values())
    assert list(summary.cameras) == [camera.name for camera in config.cameras]
    for name, counts in summary.cameras.items():
        assert counts == {state: found.get((name, state), 0) for state in State}
    for state, count in summary.counts.items():
        assert count == sum(counts[state] for counts in summary.cameras.values())
    return summary


def pictures(folder, grey, size=(30, 20)):
    folder.mkdir()
    for index in range(5):
        Image.new("RGB", size, (grey, index, 0)).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_cameras_that_always_have_parts_get_equal_shares(tmp_path, workers):
    """Three folders of frames as different as can be; each always has parts that wait."""
    sizes = {"small": (30, 20), "large": (640, 480), "wide": (500, 10)}
    read, taken = Counter(), Counter()
    changed, stop = threading.Condition(), threading.Event()

    class Eager(FolderCamera):
        def read(self):
            with changed:
                read[names[self]] += 1
                changed.notify_all()
            return super().read()

    settings = [
        FolderSettings(name=name, path=pictures(tmp_path / name, grey, size), after_last="repeat")
        for grey, (name, size) in enumerate(sizes.items())
    ]
    cameras = [Eager(one, CameraContext(stop=stop)) for one in settings]
    names = {camera: one.name for camera, one in zip(cameras, settings, strict=True)}

    def hold(pixels):
        """Go on when each camera is busy with its third part from here: two wait at least."""
        name = settings[int(pixels[0, 0, 0])].name
        with changed:
            taken[name] += 1
            until = time.monotonic() + 60
            # Nobody tells of `stop`, so it is looked for.
            while not (stop.is_set() or all(read[one] - taken[one] >= 3 for one in sizes)):
                assert time.monotonic() < until
                changed.wait(0.05)

    summary = ran(
        configured(tmp_path, *settings),
        cameras,
        BrightnessInspector(hold),
        parts=240,
        workers=workers,
        stop=stop,
    )
    inspected = [counts[State.OK] for counts in summary.cameras.values()]
    assert sum(inspected) == 240
    assert max(inspected) / min(inspected) <= 1.1


def test_all_parts_of_all_folders_are_inspected_once(tmp_path):
    settings = [
        FolderSettings(name=name, path=pictures(tmp_path / name, grey))
        for name, grey in (("good", 20), ("bad", 90))
    ]
    (tmp_path / "bad" / "2.png").write_bytes(b"no picture")
    seen = []
    summary = ran(
        configured(tmp_path, *settings),
        [FolderCamera(one, CameraContext()) for one in settings],
        observers=[seen.append],
    )
    assert summary.cameras["good"][State.OK] == 5
    assert (summary.cameras["bad"][State.NG], summary.cameras["bad"][State.ERROR]) == (4, 1)
    sequences = sorted(part.trigger.sequence for part in seen)
    assert sequences == list(range(1, 11))
    for name in ("good", "bad"):
        assert [one.part_id for one in seen if one.camera == name and one.inspection] == [
            f"{index}.png" for index in range(5) if (name, index) != ("bad", 2)
        ]


def test_each_camera_has_the_deadline_and_the_fail_safe_of_its_own_line(tmp_path):
    strict = LineSettings(deadline_ms=50, fail_safe="pass")
    settings = [
        ConveyorSettings(name="strict", line=strict),
        ConveyorSettings(name="patient"),
        ConveyorSettings(name="common"),
    ]
    common = LineSettings(deadline_ms=51)
    patient = replace(settings[1], line=LineSettings())
    config = configured(tmp_path, settings[0], patient, settings[2], line=common)
    clock = ManualClock()
    # Each camera loses one frame; each part takes longer than two of the deadlines allow.
    summary = ran(
        config,
        [ScriptedCamera(1, 3) for _ in settings],
        BrightnessInspector(lambda _pixels: clock.advance(0.06)),
        clock=clock,
    )
    assert summary.cameras["patient"] == dict.fromkeys(State, 0) | {
        State.OK: 2, State.NO_FRAME: 1
    }  # fmt: skip
    for name in ("strict", "common"):
        assert summary.cameras[name][State.TIMEOUT] == 2
    assert summary.alarms == 3 + 1  # all three of `common`, and the frame that `patient` lost


def test_the_run_ends_after_so_many_parts_of_all_cameras_together(tmp_path):
    """One of them waits for parts that never come: it is told to stop."""
    stop = threading.Event()
    settings = [
        ConveyorSettings(name="left"),
        ConveyorSettings(name="right"),
        FolderSettings(name="idle", path=tmp_path, after_last="watch"),
    ]
    cameras = [
        ScriptedCamera(*range(50)),
        ScriptedCamera(*range(50)),
        FolderCamera(settings[2], CameraContext(stop=stop)),
    ]
    summary = ran(configured(tmp_path, *settings), cameras, parts=33, stop=stop)
    assert summary.triggers == 33


def test_a_bug_in_one_camera_ends_the_run_although_the_others_could_go_on(tmp_path):
    stop = threading.Event()
    endless = ConveyorSettings(name="endless", parts_per_minute=600)
    with pytest.raises(RuntimeError, match="a bug"):
        run_station(
            configured(tmp_path, ConveyorSettings(name="broken"), endless),
            cameras=[
                ScriptedCamera(0, RuntimeError("a bug")),
                ConveyorCamera(endless, CameraContext(stop=stop)),
            ],
            inspector=BrightnessInspector(),
            model=Model(threshold=0.5),
            stop=stop,
        )


class Spoilt(ConveyorCamera):
    """A conveyor that does what is `wrong` with it once that is set."""

    wrong = None

    def read(self):
        match self.wrong:
            case None:
                self.last = super().read()
                return self.last
            case "gone":
                raise CameraError("the cable is out")
            case "hangs":
                self.context.stop.wait()
                return None
            case "frozen":
                self.pace.wait()
                return replace(self.last, number=self.last.number + 1)

    def renewed(self):
        return self


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("gone", "the cable is out"),
        ("hangs", "has not answered for a while"),
        ("frozen", "the camera shows the same picture again"),
    ],
)
def test_a_camera_in_trouble_is_named_and_holds_up_no_other(
    broker, hear, tmp_path, eventually, wrong, said
):
    """On a real broker: health names the camera, and the other one's parts go on.

    A camera that was there before, and is not any more, keeps its account.
    """
    ran(configured(tmp_path, ConveyorSettings(name="old")), [ScriptedCamera(1, 2)])
    settings = [
        ConveyorSettings(name=name, parts_per_minute=1200, seed=seed)
        for seed, name in enumerate(("left", "right"))
    ]
    config = configured(tmp_path, *settings, sinks=(replace(broker.settings, health_s=3600),))
    heard, stop = hear(broker.settings, "atac/line-3/#"), threading.Event()
    left, right = (Spoilt(one, CameraContext(stop=stop)) for one in settings)
    seen = Counter()

    def run():
        run_station(
            config,
            cameras=[left, right],
            inspector=BrightnessInspector(),
            model=Model(threshold=0.5),
            stop=stop,
            observers=[lambda part: seen.update([part.camera])],
        )

    def health():
        return [json.loads(payload) for payload in heard.on("health")]

    def told():
        """Health that says so; on a busy machine other things may trouble it too."""
        reason = f"camera right: {said}"
        return [one for one in health() if any(why.startswith(reason) for why in one["reasons"])]

    line = threading.Thread(target=run)
    line.start()
    try:
        eventually(lambda: min(seen["left"], seen["right"]) > 2)
        right.wrong = wrong
        eventually(told)
        left_then = seen["left"]
        eventually(lambda: seen["left"] > left_then + 10)
    finally:
        stop.set()
        line.join()
    statuses = {one["name"]: one["status"] for one in told()[0]["cameras"]}
    assert list(statuses) == ["left", "right", "old"]
    assert (statuses["right"], statuses["old"]) == ("fault", "removed")
    for one in health():
        for key in ("triggers", "open"):
            assert one[key] == sum(camera[key] for camera in one["cameras"])
        for state, count in one["counts"].items():
            assert count == sum(camera["counts"][state] for camera in one["cameras"])
    ends = counted(config)
    assert health()[-1]["triggers"] == sum(ends.values())
    due = Counter(
        {camera: count for (camera, state), count in ends.items() if state is State.NG}
    ) + Counter({camera: count for (camera, state), count in ends.items() if state is State.ERROR})
    eventually(
        lambda: due == Counter(json.loads(payload)["camera"] for payload in heard.on("alarm"))
    )
