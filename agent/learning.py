"""`agent doctor --learn-triggers`: windows are measured on the line, and written."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Literal

from agent.cameras.settings import AnyCameraSettings
from agent.clock import SystemClock
from agent.doctor import Finding
from agent.ports import Announcement, Camera, Clock, Fired, TriggerSource
from agent.registry import open_camera, open_trigger
from agent.settings import Config, load_config
from agent.settings_file import edit, written_key
from agent.triggers.learning import Learnt, learnt
from agent.triggers.settings import SinkTriggerSettings, WindowSettings
from engine.errors import AtacError, CameraError, ImageError, TriggerError

PATIENCE_S: Final = 60.0
"""After so long without anything new the line is taken to stand still."""
_LAST_S: Final = 2.0
"""How long the frame of the last announcement is waited for."""
_SOURCE: Final = {"trigger": "triggers", "part_ids": "part ids"}

Key = Literal["trigger", "part_ids"]


@dataclass(slots=True)
class _Seen:
    """The times of what came, in order."""

    trigger: list[float] = field(default_factory=list)
    part_ids: list[float] = field(default_factory=list)
    frames: list[float] = field(default_factory=list)


def learn(path: Path, wanted: int, *, patience_s: float = PATIENCE_S) -> Iterator[Finding]:
    """Measure the window of each camera that has one, from `wanted` announcements, and write it.

    One finding for each, with the lines that were written into the configuration at `path`.
    """
    try:
        config = load_config(path)
    except AtacError as error:
        yield Finding(check="configuration", level="fail", message=str(error))
        return
    if not any(_keys(camera) for camera in config.cameras):
        message = "no camera has a trigger or part_ids with a window; there is nothing to learn"
        yield Finding(check="trigger", level="warn", message=message)
    for index, camera in enumerate(config.cameras):
        if keys := _keys(camera):
            yield from _learnt(path, config, index, keys, wanted, patience_s)


def _keys(camera: AnyCameraSettings) -> list[Key]:
    """Which sources of a camera have a window."""
    both: tuple[Key, ...] = ("trigger", "part_ids")
    return [key for key in both if isinstance(getattr(camera, key), WindowSettings)]


def _learnt(
    path: Path, config: Config, index: int, keys: list[Key], wanted: int, patience_s: float
) -> Iterator[Finding]:
    camera = config.cameras[index]
    finding = partial(_finding, camera.name)
    if isinstance(camera.trigger, SinkTriggerSettings):
        yield finding("trigger", "warn", "is announced by a sink, and cannot be learnt here")
        return
    try:
        seen = _watch(config, camera, keys, wanted, patience_s)
    except AtacError as error:
        yield finding(keys[0], "fail", str(error))
        return
    for key in keys:
        announced, parts = getattr(seen, key), seen.frames
        if key == "part_ids" and "trigger" in keys:
            parts = seen.trigger
        found = learnt(announced, parts, may_precede=key == "part_ids")
        if found is None:
            what = f"{len(announced)} {_SOURCE[key]} and {len(parts)} parts came within"
            yield finding(key, "fail", f"{what} {patience_s:.0f} s, and none belong together")
        elif found.overlaps:
            yield finding(key, "fail", f"{_words(found)}; {_OVERLAP}")
        else:
            lines = edit(
                path,
                written_key(path, ("cameras", index, key)),
                {"min_ms": found.min_ms, "max_ms": found.max_ms},
            )
            level: Literal["ok", "warn"] = "warn" if found.alone or found.unexpected else "ok"
            yield finding(key, level, f"{_words(found)}; written: {' '.join(lines)}")


_OVERLAP: Final = (
    "a window would be wider than the time between two parts, and is not written: let parts come "
    "further apart, or use a camera that counts its triggers"
)


def _finding(camera: str, key: Key, level: Literal["ok", "warn", "fail"], message: str) -> Finding:
    return Finding(check=_SOURCE[key], level=level, message=f"{camera}: {message}")


def _words(found: Learnt) -> str:
    shortest, median, longest = found.delays_ms
    said = [
        f"{found.paired} parts, {shortest:.1f} to {longest:.1f} ms after (median {median:.1f} ms)"
    ]
    if found.alone:
        said.append(f"{found.alone} announcements had no part")
    if found.unexpected:
        said.append(f"{found.unexpected} parts were not announced")
    return ", ".join(said)


def _watch(
    config: Config, camera: AnyCameraSettings, keys: list[Key], wanted: int, patience_s: float
) -> _Seen:
    """Watch camera and sources until `wanted` announcements have come, or nothing more does."""
    stop, clock = threading.Event(), SystemClock()
    told: queue.SimpleQueue[tuple[str, float] | AtacError] = queue.SimpleQueue()
    opened = open_camera(camera, stop, clock=clock, features=config.features(camera.name))
    fire = partial(_fire, opened) if "trigger" in keys else None
    work: list[Callable[[], None]] = [partial(_read_camera, opened, clock, told)]
    for key in keys:
        source = open_trigger(getattr(camera, key), stop, clock, camera=camera.name, sinks={})
        assert source is not None, "only sources have windows"
        work.append(partial(_read_source, key, source, fire if key == "trigger" else None, told))
    # Daemons, as a camera or a source that hangs must not keep this program alive.
    threads = [threading.Thread(target=each, daemon=True) for each in work]
    for thread in threads:
        thread.start()
    seen, until = _Seen(), clock.now() + patience_s
    try:
        while (left_s := until - clock.now()) > 0:
            try:
                one = told.get(timeout=left_s)
            except queue.Empty:
                break
            if isinstance(one, AtacError):
                raise one
            name, at = one
            getattr(seen, name).append(at)
            if name != "frames":  # frames alone tell nothing
                is_last = len(getattr(seen, keys[0])) >= wanted
                until = clock.now() + (min(_LAST_S, patience_s) if is_last else patience_s)
            elif len(getattr(seen, keys[0])) >= wanted:
                break
        return seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(_LAST_S)


def _fire(camera: Camera) -> None:
    if isinstance(camera, Fired) and camera.fires:
        camera.fire()


Told = queue.SimpleQueue[tuple[str, float] | AtacError]


def _read_camera(camera: Camera, clock: Clock, told: Told) -> None:
    try:
        with camera:
            while True:
                try:
                    if camera.read() is None:
                        return
                except ImageError:
                    pass  # it came all the same
                told.put(("frames", clock.now()))
    except CameraError as error:
        told.put(error)


def _read_source(
    key: Key, source: TriggerSource, fire: Callable[[], None] | None, told: Told
) -> None:
    try:
        with source:
            while (heard := source.read()) is not None:
                if fire is not None and heard.is_trigger:
                    fire()
                if _counts(key, heard):
                    told.put((key, heard.at))
    except TriggerError as error:
        told.put(error)


def _counts(key: Key, heard: Announcement) -> bool:
    return heard.is_trigger or key == "part_ids"
