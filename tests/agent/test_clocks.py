"""The wall clock is set while the agent runs: deadlines, ages and requests stay sound."""

import json
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from agent.cameras.scripted import ScriptedCamera
from agent.mqtt.link import Heard
from agent.part import State
from agent.record.ledger import Ledger
from agent.record.retention import AgeClock, Trusted
from agent.requests import Requests
from agent.settings import AgentSettings, BundleSettings, Config, LedgerSettings
from agent.sinks.mqtt.messages import Topics
from agent.sinks.mqtt.requests import MqttRequests, request_json
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.run import run_station
from agent.station.station import Model
from agent.station.threshold import Threshold
from engine.scripted_inspector import BrightnessInspector
from tests.agent.station.test_station import rows

S = 1_000_000_000
DAY = 86_400 * S
YEAR = 365 * DAY


class Clocks:
    """A wall clock that can be set, and a steady one that only goes on."""

    def __init__(self):
        self.wall, self.steady = 1_800_000_000 * S, 5 * S

    def pass_time(self, ns):
        self.wall += ns
        self.steady += ns

    def ages(self):
        return AgeClock(lambda: self.wall, lambda: self.steady)


def test_ages_follow_the_clock_and_its_small_corrections():
    clocks = Clocks()
    ages = clocks.ages()
    for correction in (0, 20 * S, -30 * S, 50 * S):
        clocks.pass_time(3600 * S)
        clocks.wall += correction
        assert ages.now_ns() == clocks.wall


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
def test_a_clock_set_by_mistake_makes_nothing_old_or_young(jump, caplog):
    clocks = Clocks()
    ages = clocks.ages()
    true = clocks.wall
    clocks.wall += jump
    for _ in range(23):
        assert ages.now_ns() == true
        clocks.pass_time(3600 * S)
        true += 3600 * S
    clocks.wall -= jump  # somebody notices
    assert ages.now_ns() == true == clocks.wall
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    clocks.wall += jump  # and it happens again: the day begins anew
    clocks.pass_time(3 * 3600 * S)
    assert ages.now_ns() == true + 3 * 3600 * S


def test_a_jump_that_holds_for_a_day_is_believed():
    clocks = Clocks()
    ages = clocks.ages()
    clocks.wall += YEAR
    ages.now_ns()
    clocks.pass_time(DAY + S)
    assert ages.now_ns() == clocks.wall
    clocks.pass_time(S)
    assert ages.now_ns() == clocks.wall


def started(clocks, trusted):
    ages = clocks.ages()
    ages.take_up(trusted)
    return ages


def test_a_clock_that_is_wrong_at_the_start_makes_nothing_old():
    clocks = Clocks()
    before = clocks.ages().trusted()
    clocks.pass_time(60 * S)
    true = clocks.wall
    clocks.wall += 60 * DAY  # the network has not set it yet
    ages = started(clocks, before)
    assert ages.now_ns() < true
    clocks.pass_time(60 * S)
    clocks.wall -= 60 * DAY
    assert abs(ages.now_ns() - clocks.wall) <= 60 * S


def test_what_has_differed_for_a_day_of_running_time_is_believed_over_restarts():
    clocks = Clocks()
    trusted = clocks.ages().trusted()
    clocks.wall += 10 * DAY  # the machine was off for so long
    for _ in range(3):
        ages = started(clocks, trusted)
        ages.now_ns()
        clocks.pass_time(9 * 3600 * S)
        trusted = ages.trusted()
    assert trusted == Trusted(now_ns=clocks.wall)


def test_the_ledger_takes_ages_from_that_clock(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite", agent_id="a")
    assert abs(ledger.ages.now_ns() - time.time_ns()) < 60 * S


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
def test_a_clock_set_between_trigger_and_verdict_changes_neither(tmp_path, jump, monkeypatch):
    """The camera stamps one part before the clock is set and one after it."""
    config = Config(
        agent=AgentSettings(id="a"),
        bundle=BundleSettings(path=tmp_path),
        cameras=[{"type": "conveyor"}],
        sinks=(MqttSettings(host="127.0.0.1", port=1, drain_s=0),),
        ledger=LedgerSettings(path=tmp_path / "ledger.sqlite"),
    )
    config = replace(config, line=replace(config.line, deadline_ms=5000))

    class Set(ScriptedCamera):
        def read(self):
            frame = super().read()
            if frame is None or frame.number == 0:
                return frame
            return replace(frame, captured_ns=frame.captured_ns + jump)

    seen = []
    run_station(
        config,
        cameras=[Set(0, 1, 3)],
        inspector=BrightnessInspector(),
        model=Model(threshold=0.5),
        observers=[seen.append],
    )
    assert [state for _, _, state, _ in rows(config)] == ["OK", "OK", "NO_FRAME", "OK"]
    for part in seen:
        waited = part.ended.decided_ns - part.trigger.triggered_ns
        assert 0 <= waited < (5 * S if part.ended.state is State.OK else 2 * YEAR)


def asked(nonce, until):
    expires = f"{datetime.fromtimestamp(until, UTC):%Y-%m-%dT%H:%M:%SZ}"
    payload = request_json("ping", nonce, expires)
    return Heard(payload=payload, response_topic="atac/a/response")


def test_a_request_cannot_be_repeated_by_setting_the_clock_back(tmp_path):
    now = 1_800_000_000.0
    with Ledger(tmp_path / "ledger.sqlite", agent_id="a") as ledger:
        requests = MqttRequests(
            MqttSettings(host="127.0.0.1", commands=("ping",)),
            Topics(agent_id="a"),
            Requests(
                ledger,
                agent_id="a",
                threshold=Threshold(ledger, calibrated=1.0, calibration_id=""),
                paused=threading.Event(),
            ),
            lambda *_: 0,
            now=lambda: now,
        )

        def answer(request):
            return json.loads(requests.answer(request).payload)

        first = asked("nonce-0001", now + 60)
        assert answer(first)["ok"]
        now += 61
        assert answer(asked("nonce-0002", now + 60))["ok"]  # here the first nonce is forgotten
        now -= 30
        assert answer(first)["error"] == "may have been made before: the agent's clock was set back"
        assert answer(asked("nonce-0003", now + 60))["ok"]
