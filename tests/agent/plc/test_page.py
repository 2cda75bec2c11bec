"""docs/plc.md: its example loads, and its tables and picture are those of the code."""

import re
from pathlib import Path

from agent.settings import load_config
from tools.plc_page import PAGE, PICTURE, page, svg


def test_the_example_is_a_configuration(tmp_path):
    example, _ = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    path = tmp_path / "agent.yaml"
    path.write_text(example)
    config = load_config(path)
    assert config.cameras[0].trigger.sink == config.sinks[0].name == "plc"
    assert config.cameras[0].path == tmp_path / Path("parts")


def test_tables_and_picture_are_up_to_date():
    assert page(PAGE.read_text()) == PAGE.read_text(), "run: python tools/plc_page.py"
    assert svg() == PICTURE.read_text(), "run: python tools/plc_page.py"
