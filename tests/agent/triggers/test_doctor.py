"""What `agent doctor` says of trigger sources."""

import pytest

from agent.doctor import examine

HEAD = "agent: {id: a}\nbundle: {path: none}\nmqtt: {host: 127.0.0.1, port: 1}\n"


def found(path, camera):
    path.write_text(f"{HEAD}line: {{deadline_ms: 50}}\ncamera: {{type: conveyor, {camera}}}\n")
    return {each.check: each for each in examine(path) if each.check in {"trigger", "part ids"}}


def test_a_source_that_cannot_be_reached_is_said(tmp_path):
    camera = (
        "trigger: {type: mqtt, host: 127.0.0.1, port: 1, topic: a}, "
        "part_ids: {type: serial, device: none}"
    )
    said = found(tmp_path / "agent.yaml", camera)
    assert {each.level for each in said.values()} == {"fail"}
    assert "main: 127.0.0.1:1: Connection refused" in said["trigger"].message
    assert "is the reader connected" in said["part ids"].message


@pytest.mark.parametrize(("max_ms", "level"), [(40, "ok"), (60, "warn")])
def test_a_window_that_ends_after_the_deadline_is_said(tmp_path, max_ms, level):
    said = found(tmp_path / "agent.yaml", f"trigger: {{type: software, max_ms: {max_ms}}}")
    assert said["trigger"].level == level
    assert ("decided too late" in said["trigger"].message) == (level == "warn")
