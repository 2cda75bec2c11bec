"""The line on a terminal: rewritten with each status, absent in a pipe."""

import io

from agent.services.terminal import Terminal, line
from tests.agent.statuses import Newest, camera_status, status


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_counts_are_those_of_this_run_and_the_rate_that_of_the_last_second():
    first = status(cameras={"main": camera_status(OK=100, NG=1)}, uptime_s=1.0)
    last = status(cameras={"main": camera_status(OK=110, NG=1)}, uptime_s=10.0)
    now = status(
        cameras={"main": camera_status(OK=112, NG=1), "side": camera_status(DROPPED=2)},
        uptime_s=12.0,
    )
    assert line(first, last, now) == "14 parts · OK 12 · DROPPED 2 · 2.0/s"
    assert line(first, first, first) == "0 parts · 0.0/s"


def test_a_fault_is_shown():
    now = status(faults=("camera main: gone", "ledger: full"))
    assert line(now, now, now).endswith(" · camera main: gone")


def test_a_terminal_shows_each_status_and_is_clean_afterwards(eventually):
    watched, screen = Newest(status()), Screen()
    with Terminal(watched, screen):
        watched.latest = status(cameras={"main": camera_status(NG=3)}, uptime_s=61.0)
        eventually(lambda: "3 parts · NG 3 · 3.0/s" in screen.getvalue())
    assert screen.getvalue().endswith("\r\x1b[K")


def test_nothing_is_written_into_a_pipe():
    watched, pipe = Newest(status()), io.StringIO()
    with Terminal(watched, pipe):
        watched.latest = status(uptime_s=61.0)
    assert pipe.getvalue() == ""
