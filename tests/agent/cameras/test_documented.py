"""The complete configurations of docs/cameras.md are read as they stand."""

import re
from pathlib import Path

import pytest

from agent.settings import load_config

TEXT = (Path(__file__).parents[3] / "docs" / "cameras.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
COMPLETE = [block for block in BLOCKS if block.startswith("agent:")]
_AROUND = "agent: {id: a}\nbundle: {path: b}\nmqtt: {host: h}\n"


@pytest.mark.parametrize("text", [*COMPLETE, *(b for b in BLOCKS if b not in COMPLETE)])
def test_each_configuration_can_be_read(text, tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text(text if text in COMPLETE else _AROUND + text)
    assert load_config(path).cameras


def test_there_are_three_complete_ones():
    assert len(COMPLETE) == 3
