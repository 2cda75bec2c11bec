"""Which parts are alarms: code, schema and documents say the same."""

import json
import re
from pathlib import Path

import pytest

from agent.part import State, is_alarm

ROOT = Path(__file__).parents[3]
ALARMS = {State.NG, State.ERROR, State.TIMEOUT, State.DROPPED, State.NO_FRAME}


@pytest.mark.parametrize("state", State)
def test_only_ok_is_silent_and_fail_safe_pass_lets_what_was_not_inspected_go(state):
    assert is_alarm(state, "reject") == (state in ALARMS)
    assert is_alarm(state, "pass") == (state in {State.NG, State.ERROR})


def test_the_schema_of_an_alarm_has_just_these_states():
    schema = json.loads((ROOT / "agent/schemas/alarm.schema.json").read_text())
    (states,) = re.findall(r'"enum": (\[[^]]*"NG"[^]]*\])', json.dumps(schema))
    assert set(json.loads(states)) == ALARMS


def test_the_document_names_just_these_states():
    text = (ROOT / "docs/mqtt.md").read_text()
    (line,) = re.findall(r"- `state` is (.*?);", text)
    assert set(re.findall(r"[A-Z_]{2,}", line)) == ALARMS


def test_the_configuration_says_what_fail_safe_is_for():
    (line,) = re.findall(r"#fail_safe: reject +# (.*)", (ROOT / "agent.yaml").read_text())
    assert line == "parts that were not inspected raise an alarm; pass: they do not"
