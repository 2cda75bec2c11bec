"""Parts from a GPIO line; there is no chip here, so the line is a scripted one."""

import threading

import pytest

from agent.clock import ManualClock
from agent.ports import Announcement
from agent.registry import open_trigger
from agent.settings import load_config
from agent.triggers.gpio import GpioSettings, GpioTriggers
from agent.triggers.scripted import ScriptedEdge, ScriptedLine
from engine.errors import TriggerError

SETTINGS = GpioSettings(chip="/dev/gpiochip0", line=17)


def source_of(*script, stop=None, clock=None):
    line = ScriptedLine(*script)
    made = GpioTriggers(
        SETTINGS, stop or threading.Event(), clock or ManualClock(now=9.0), request=lambda _: line
    )
    return made, line


def test_an_edge_is_a_part_at_the_kernel_s_time_with_the_kernel_s_count():
    edges = [ScriptedEdge(8_250_000_000, 1), ScriptedEdge(8_500_000_000, 2)]
    source, line = source_of(edges, [ScriptedEdge(9_900_000_000, 5)])
    with source:
        assert [source.read() for _ in range(3)] == [
            Announcement(at=8.25, count=1),
            Announcement(at=8.5, count=2),
            Announcement(at=9.0, count=5),
        ]
    assert line.is_released


def test_stop_ends_the_wait():
    stop = threading.Event()
    source, _ = source_of(stop.set, stop=stop)
    with source:
        assert source.read() is None


def test_a_line_that_goes_is_said():
    source, _ = source_of(OSError(19, "No such device"))
    with source, pytest.raises(TriggerError, match="/dev/gpiochip0: No such device"):
        source.read()


def test_gpiod_has_what_we_ask_of_it(tmp_path):
    """The real library, up to the chip that is not there."""
    pytest.importorskip("gpiod", reason="needs gpiod 2: pip install '.[gpio]'")
    for edge in ("rising", "falling"):
        for bias in ("as_is", "disabled", "pull_up", "pull_down"):
            settings = GpioSettings(chip=tmp_path / "gpiochip0", line=17, edge=edge, bias=bias)
            source = open_trigger(settings, threading.Event(), ManualClock())
            with pytest.raises(TriggerError, match="there is no such chip; gpiodetect lists"):
                source.__enter__()


def test_a_line_has_a_number_or_a_name(tmp_path):
    path = tmp_path / "agent.yaml"
    head = "agent: {id: a}\nbundle: {path: b}\nmqtt: {host: h}\ncamera: {type: conveyor, "
    for written, read in (("17", 17), ("GPIO17", "GPIO17")):
        path.write_text(
            head + f"trigger: {{type: gpio, chip: /dev/gpiochip0, line: {written}}}}}\n"
        )
        assert load_config(path).cameras[0].trigger.line == read
