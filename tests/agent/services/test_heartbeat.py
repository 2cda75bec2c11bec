"""What systemd hears, with a socket in its place."""

import os
import secrets
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from agent.services.heartbeat import Heartbeat
from tests.agent.statuses import Newest, status


@pytest.fixture(params=["file", "abstract"])
def systemd(request):
    """A socket that hears, and its address as `NOTIFY_SOCKET` gives it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard,
    ):
        heard.settimeout(10.0)
        name = f"atac-{secrets.token_hex(8)}"
        if request.param == "abstract":
            heard.bind(f"\0{name}")
            yield heard, f"@{name}"
        else:
            heard.bind(f"{folder}/notify")
            yield heard, f"{folder}/notify"


def next_of(heard):
    return heard.recv(100).decode()


def test_ready_then_signs_of_life_then_stopping(systemd):
    heard, address = systemd
    environment = {
        "NOTIFY_SOCKET": address,
        "WATCHDOG_USEC": "80000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    with Heartbeat(Newest(status()), environment):
        assert [next_of(heard) for _ in range(4)] == ["READY=1"] + ["WATCHDOG=1"] * 3
    while (last := next_of(heard)) == "WATCHDOG=1":
        pass
    assert last == "STOPPING=1"


@pytest.mark.parametrize(
    ("hangs", "age_s"), [({"in_hand_s": 3.0}, 0.0), ({}, 60.0), ({"ended_threads": ("x",)}, 0.0)]
)
def test_no_sign_of_life_from_an_agent_that_hangs(systemd, caplog, hangs, age_s):
    heard, address = systemd
    asked = threading.Semaphore(0)

    class Asked(Newest):
        def age_s(self):
            asked.release()
            return super().age_s()

    watched = Asked(status())
    with Heartbeat(watched, {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "80000"}):
        assert next_of(heard) == "READY=1"
        assert next_of(heard) == "WATCHDOG=1"
        watched.age = age_s
        watched.latest = status(**hangs)
        while "no progress" not in caplog.text:
            assert asked.acquire(timeout=60)
        heard.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                heard.recv(100)
        heard.settimeout(10.0)
        for _ in range(asked._value + 5):
            assert asked.acquire(timeout=60)
    assert next_of(heard) == "STOPPING=1"  # once it hangs there is not one more
    assert caplog.text.count("no progress") == 1


@pytest.mark.parametrize(
    "watchdog",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
    ],
)
def test_without_a_watchdog_there_is_no_thread(systemd, watchdog):
    heard, address = systemd
    with Heartbeat(Newest(status()), {"NOTIFY_SOCKET": address, **watchdog}):
        assert not any(one.name == "atac-heartbeat" for one in threading.enumerate())
    assert [next_of(heard), next_of(heard)] == ["READY=1", "STOPPING=1"]


def test_nobody_to_tell_and_nobody_who_hears(tmp_path, caplog):
    with Heartbeat(Newest(status()), {"WATCHDOG_USEC": "1000"}):
        pass
    assert caplog.text == ""
    with Heartbeat(Newest(status()), {"NOTIFY_SOCKET": str(tmp_path / "nobody")}):
        pass
    assert "systemd cannot be notified of READY=1" in caplog.text


def test_the_unit_says_what_the_agent_does():
    unit = (Path(__file__).parents[3] / "docs/systemd/atac-agent.service").read_text()
    settings = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line[:30])
    assert settings["Type"] == "notify"
    assert int(settings["WatchdogSec"]) > 0
    assert settings["RestartPreventExitStatus"] == "2"
    assert " run --config " in settings["ExecStart"]
