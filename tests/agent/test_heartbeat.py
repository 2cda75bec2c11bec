"""What systemd hears, with a socket in its place."""

import os
import secrets
import socket
import tempfile
import threading
from pathlib import Path

import pytest

from agent.heartbeat import Heartbeat, Progress


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
    asked = []

    def is_well(limit_s):
        asked.append(limit_s)
        return True

    environment = {
        "NOTIFY_SOCKET": address,
        "WATCHDOG_USEC": "80000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    with Heartbeat(is_well, environment):
        assert [next_of(heard) for _ in range(4)] == ["READY=1"] + ["WATCHDOG=1"] * 3
    while (last := next_of(heard)) == "WATCHDOG=1":
        pass
    assert last == "STOPPING=1"
    assert set(asked) == {0.04}


def test_no_sign_of_life_from_an_agent_that_hangs(systemd, caplog):
    heard, address = systemd
    looked = threading.Semaphore(0)
    found = []
    progress = Progress()

    def is_well(limit_s):
        found.append(progress.in_hand_s() < limit_s)
        looked.release()
        return found[-1]

    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "80000"}
    with Heartbeat(is_well, environment):
        assert next_of(heard) == "READY=1"
        assert next_of(heard) == "WATCHDOG=1"
        progress.begin()  # and never an end
        while "nothing gets on" not in caplog.text:
            assert looked.acquire(timeout=10)
        for _ in range(5):
            assert looked.acquire(timeout=10)
    said = ["WATCHDOG=1"]
    while (line := next_of(heard)) != "STOPPING=1":
        said.append(line)
    assert len(said) == found.count(True)
    assert found == sorted(found, reverse=True)  # once it hangs there is not one more
    assert caplog.text.count("nothing gets on") == 1


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
    with Heartbeat(lambda _limit_s: True, {"NOTIFY_SOCKET": address, **watchdog}):
        assert not any(one.name == "atac-heartbeat" for one in threading.enumerate())
    assert [next_of(heard), next_of(heard)] == ["READY=1", "STOPPING=1"]


def test_nobody_to_tell_and_nobody_who_hears(tmp_path, caplog):
    with Heartbeat(lambda _limit_s: True, {"WATCHDOG_USEC": "1000"}):
        pass
    assert caplog.text == ""
    with Heartbeat(lambda _limit_s: True, {"NOTIFY_SOCKET": str(tmp_path / "nobody")}):
        pass
    assert "systemd does not hear READY=1" in caplog.text


def test_progress_counts_from_the_part_in_hand():
    progress = Progress()
    assert progress.in_hand_s() == 0
    progress.begin()
    assert progress.in_hand_s() > 0
    progress.end()
    assert progress.in_hand_s() == 0


def test_the_unit_says_what_the_agent_does():
    unit = (Path(__file__).parents[2] / "docs/systemd/atac-agent.service").read_text()
    settings = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line[:30])
    assert settings["Type"] == "notify"
    assert int(settings["WatchdogSec"]) > 0
    assert settings["RestartPreventExitStatus"] == "2"
    assert " run --config " in settings["ExecStart"]
