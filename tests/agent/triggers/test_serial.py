"""Part ids from a bar-code reader: a pseudo-terminal stands for its port."""

import os
import pty
import threading
import tty
from contextlib import contextmanager

import pytest

from agent.clock import SystemClock
from agent.registry import open_trigger
from agent.settings import load_config
from agent.triggers.serial import SerialSettings
from engine.errors import ConfigurationError, TriggerError

pytest.importorskip("serial", reason="needs pyserial: pip install '.[serial]'")


class Reader:
    """A reader that is plugged in: what it sends comes out at `device`."""

    def __init__(self):
        self._end, self._port = pty.openpty()
        tty.setraw(self._port)
        self.device = os.ttyname(self._port)

    def sends(self, data):
        os.write(self._end, data)

    def is_unplugged(self):
        for end in (self._end, self._port):
            os.close(end)
        self._end = None


@pytest.fixture
def reader():
    made = Reader()
    yield made
    if made._end is not None:
        made.is_unplugged()


@contextmanager
def reading(reader, **more):
    settings = SerialSettings(device=reader.device, **more)
    with open_trigger(settings, threading.Event(), SystemClock()) as source:
        yield source


@pytest.mark.parametrize(
    ("sent", "ids"),
    [
        ((b"PART-1\r", b"PART-2\r"), ["PART-1", "PART-2"]),
        ((b"PART-1\r\nPART-2\r\n",), ["PART-1", "PART-2"]),
        ((b"PA", b"RT-1", b"\r", b"\nPART-2\n"), ["PART-1", "PART-2"]),
        ((b"\x02PART-1\x03\x02PART-2\x03",), ["PART-1", "PART-2"]),
        ((b"NOREAD\rPART-2\r",), ["PART-2"]),
        ((b"\xff\xfe\rPART-2\r",), ["PART-2"]),
        ((b"01095060\x1d10ABC\r",), ["01095060␝10ABC"]),
    ],
)
def test_each_code_names_a_part(reader, sent, ids):
    with reading(reader) as source:
        for data in sent:
            reader.sends(data)
        heard = [source.read() for _ in ids]
        assert [each.part_id for each in heard] == ids
        assert not any(each.is_trigger for each in heard)


def test_what_was_read_before_the_agent_looked_is_nobody_s(reader):
    reader.sends(b"OLD\r")
    with reading(reader) as source:
        reader.sends(b"NEW\r")
        assert source.read().part_id == "NEW"


def test_a_reader_that_is_unplugged_is_said(reader):
    with reading(reader) as source:
        reader.is_unplugged()
        with pytest.raises(TriggerError, match="the reader was disconnected"):
            source.read()


def test_noise_at_a_wrong_speed_is_said(reader):
    with reading(reader) as source:
        reader.sends(b"\x80" * 600)
        with pytest.raises(TriggerError, match="check baud and parity"):
            source.read()


def test_a_port_that_is_not_there_or_taken_is_said(reader, tmp_path):
    missing = SerialSettings(device=tmp_path / "ttyUSB0")
    with pytest.raises(TriggerError, match="is the reader connected"):
        open_trigger(missing, threading.Event(), SystemClock()).__enter__()
    with reading(reader), pytest.raises(TriggerError, match="used by another program"):
        open_trigger(
            SerialSettings(device=reader.device), threading.Event(), SystemClock()
        ).__enter__()


def test_stop_ends_the_wait(reader):
    stop = threading.Event()
    with open_trigger(SerialSettings(device=reader.device), stop, SystemClock()) as source:
        stop.set()
        assert source.read() is None


def test_a_reader_announces_no_parts(tmp_path):
    path = tmp_path / "agent.yaml"
    head = "agent: {id: a}\nbundle: {path: b}\nmqtt: {host: h}\ncamera: {type: conveyor, "
    path.write_text(head + "trigger: {type: serial, device: /dev/ttyACM0}}\n")
    with pytest.raises(ConfigurationError, match=r"camera\.trigger.*write it as part_ids"):
        load_config(path)
    path.write_text(head + "part_ids: {type: frames}}\n")
    with pytest.raises(ConfigurationError, match=r"camera\.part_ids.*gives no part ids"):
        load_config(path)
    path.write_text(head + "trigger: {type: software, min_ms: -5}}\n")
    with pytest.raises(ConfigurationError, match="no frame comes before its trigger"):
        load_config(path)
    path.write_text(head + "part_ids: {type: serial, device: ttyACM0, min_ms: -50, max_ms: 5}}\n")
    assert load_config(path).cameras[0].part_ids.device == tmp_path / "ttyACM0"
