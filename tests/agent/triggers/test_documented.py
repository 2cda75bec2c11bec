"""The configurations of docs/triggers.md, as the agent reads them."""

import re
from pathlib import Path

import pytest

from agent.settings import load_config

PAGE = (Path(__file__).parents[3] / "docs" / "triggers.md").read_text()
WRITTEN = re.findall(r"^```yaml\n(agent: .*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_there_are_some():
    kinds = {kind for text in WRITTEN for kind in re.findall(r"type: (\w+)", text)}
    assert kinds >= {"mqtt", "gpio", "serial", "modbus"}


@pytest.mark.parametrize("text", WRITTEN)
def test_a_documented_configuration_loads(tmp_path, text):
    (tmp_path / "agent.yaml").write_text(text)
    config = load_config(tmp_path / "agent.yaml")
    (camera,) = config.cameras
    assert camera.trigger or camera.part_ids
    assert camera.is_triggered


def test_the_documented_deadline_is_what_the_distance_gives(tmp_path):
    (text,) = [one for one in WRITTEN if "reject_distance_mm" in one]
    (tmp_path / "agent.yaml").write_text(text)
    assert load_config(tmp_path / "agent.yaml").longest_deadline_s == pytest.approx(1.12)
