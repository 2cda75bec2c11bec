"""What the tests of the station share."""

import pytest

from agent.settings import Config, load_config


@pytest.fixture
def config(tmp_path) -> Config:
    """A configuration whose broker does not exist."""
    path = tmp_path / "agent.yaml"
    path.write_text(
        "agent: {id: test}\nbundle: {path: none}\ncamera: {type: conveyor}\n"
        "mqtt: {host: 127.0.0.1, port: 1}\n"
    )
    return load_config(path)
