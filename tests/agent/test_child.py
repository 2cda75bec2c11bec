"""A service's process: it is replaced when it ends or hangs, and its agent does not wait."""

import os
import signal
from pathlib import Path

import pytest

from agent.child import RefusedError, ServiceChild
from agent.record.feed import Feed

NO_FEED = Feed(rows_after=lambda _cursor, _limit: [], thumbnail=lambda _epoch, _sequence: None)
MODULE = """
import sys, time
from agent.child import AgentEnd, RefusedError
agent, _ = AgentEnd.taken(sys.argv[1])
if agent.setup["fails"]:
    sys.exit(3)
try:
    agent.ask("nonsense", value=1)
except RefusedError as error:
    agent.ask("heard", text=str(error))
said, (blob,) = agent.ask("bytes")
agent.ask("heard", text=f"{said} {len(blob)}")
while True:
    agent.pulse("status")
    time.sleep(3600 if agent.setup["hangs"] else 0.1)
"""


class Agent:
    def __init__(self):
        self.heard, self.pulses = [], 0

    def answer(self, question, values):
        match question:
            case "status":
                self.pulses += 1
                return {}, ()
            case "heard":
                self.heard.append(values["text"])
                return None, ()
            case "bytes":
                return "said", (b"x" * 1_000_000,)
        raise RefusedError(f"no {question}")


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Starts a child that runs `MODULE`."""
    (tmp_path / "some_service.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', Path.cwd())}")
    agent = Agent()

    def start(**setup):
        return agent, ServiceChild(
            "test",
            "some_service",
            setup={"fails": False, "hangs": False} | setup,
            feed=NO_FEED,
            answer=agent.answer,
        )

    return start


def test_it_asks_and_is_answered(child, eventually):
    agent, running = child()
    with running:
        eventually(lambda: agent.pulses > 1)
        assert agent.heard == ["no nonsense", "said 1000000"]
        assert running.fault is None
    with pytest.raises(ProcessLookupError):
        os.kill(running.pid, 0)


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_is_killed_or_frozen_is_replaced(child, eventually, monkeypatch, with_signal):
    """Without waiting for what a busy machine is granted."""
    monkeypatch.setattr("agent.child._SILENT_S", 1000.0)
    agent, running = child()
    with running:
        eventually(lambda: agent.pulses)
        first, agent.pulses = running.pid, 0
        os.kill(first, with_signal)
        eventually(lambda: running.starts == 2 and agent.pulses)
        assert running.fault is None
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)


def test_one_that_sleeps_and_asks_nothing_is_replaced(child, eventually, monkeypatch):
    monkeypatch.setattr("agent.child._SILENT_S", 1.0)
    _, running = child(hangs=True)
    with running:
        eventually(lambda: running.starts == 2)


def test_one_that_cannot_start_is_a_fault(child, eventually):
    _, running = child(fails=True)
    with running:
        eventually(lambda: running.starts > 1)
        assert running.fault == "its process ended with 3; another is started"
