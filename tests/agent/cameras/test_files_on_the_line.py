"""Folders and videos as cameras of a station with a ledger: what a user sees in the end."""

import sqlite3
import threading
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from agent.part import State
from agent.settings import Config, load_config
from agent.station.run import run_station
from agent.station.station import Model
from agent.station.summary import Summary
from engine.scripted_inspector import BrightnessInspector


def write(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 10), grey, np.uint8)).save(path)


def configured(tmp_path: Path, *cameras: str) -> Config:
    path = tmp_path / "agent.yaml"
    listed = "".join(f"  - {{{camera}}}\n" for camera in cameras)
    path.write_text(
        f"agent: {{id: test}}\nbundle: {{path: none}}\ncameras:\n{listed}"
        "mqtt: {host: 127.0.0.1, port: 1, drain_s: 0}\n"
    )
    return load_config(path)


def ran(config: Config, parts: int | None = None, **options: object) -> Summary:
    return run_station(
        config,
        inspector=BrightnessInspector(),
        model=Model(threshold=0.5),
        parts=parts,
        **options,
    )


def recorded(config: Config) -> list[tuple[str, str, str]]:
    connection = sqlite3.connect(config.ledger.path)
    try:
        return connection.execute(
            "SELECT camera, part_id, state FROM triggers ORDER BY sequence"
        ).fetchall()
    finally:
        connection.close()


def test_a_restart_inspects_only_what_is_new(tmp_path):
    for number in range(3):
        write(tmp_path / "in" / f"{number}.png", number)
    (tmp_path / "in" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n not a picture")
    watch = "name: main, type: folder, path: in, after_last: watch, settle_s: 0.2"
    config = configured(tmp_path, watch)
    first = ran(config, parts=3)
    assert first.counts[State.ERROR] == 1
    write(tmp_path / "in" / "3.png", 3)
    assert ran(config, parts=1).triggers == 1
    write(tmp_path / "in" / "2.png", 2)  # whole by now
    ran(config, parts=1)
    assert recorded(config) == [
        ("main", "0.png", "OK"),
        ("main", "1.png", "OK"),
        ("main", "2.png", "ERROR"),
        ("main", "3.png", "OK"),
        ("main", "2.png", "OK"),
    ]


def test_a_camera_whose_folder_is_away_holds_up_no_other(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    for number in range(3):
        write(tmp_path / "there" / f"{number}.png", number)
    config = configured(
        tmp_path,
        "name: away, type: folder, path: nowhere, after_last: watch",
        "name: odd, type: folder, path: file, after_last: watch",
        "name: there, type: folder, path: there, after_last: watch",
    )
    faults, stop = {}, threading.Event()

    def note(status):
        faults.update({name: each.fault for name, each in status.cameras.items() if each.fault})
        if {"away", "odd"} <= faults.keys() and status.ended == 3:
            stop.set()

    assert ran(config, readers=[note], stop=stop).counts[State.OK] == 3
    assert "is not there" in faults["away"]
    assert "is not a folder" in faults["odd"]
    assert {camera for camera, *_ in recorded(config)} == {"there"}


def test_every_frame_of_a_damaged_video_ends_in_one_state(tmp_path):
    path = tmp_path / "a.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 100.0, (64, 48))
    for index in range(120):
        writer.write(np.full((48, 64, 3), index // 4, np.uint8))
    writer.release()
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    path.write_bytes(bytes(data))
    config = configured(tmp_path, "name: main, type: video, path: a.mp4, realtime: false")
    summary = ran(config)
    assert summary.triggers == 120
    assert summary.counts[State.OK] + summary.counts[State.NO_FRAME] == 120
    assert summary.counts[State.OK] > 60
