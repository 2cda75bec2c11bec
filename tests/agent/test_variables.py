"""`${VARIABLE}` in `agent.yaml`."""

import subprocess
import sys
from pathlib import Path

import pytest

from agent.settings import load_config
from engine.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
TEXT = """\
agent:
  id: "${LINE}"
bundle: {path: "models/${MODEL}"}
camera: {type: folder, path: parts}
mqtt:
  host: ${BROKER}
  port: ${PORT}
  user: "${USER_OF_BROKER}"
  topics: plant/$${hall}/{agent}/{what}
"""
SET = {
    "LINE": "3",
    "MODEL": "bottle",
    "BROKER": "broker.local",
    "PORT": "8884",
    "USER_OF_BROKER": "line-3",
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a text with these variables set, and no other of them."""

    def read(text, **variables):
        for name in {*SET, *variables}:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "agent.yaml").write_text(text)
        return load_config(tmp_path / "agent.yaml")

    return read


def test_values_come_from_the_environment(load, tmp_path):
    with pytest.raises(ConfigurationError, match=r"mqtt\.topics"):
        load(TEXT, **SET)  # $${hall} is the text itself, and {hall} no part of a topic
    config = load(TEXT.replace("$${hall}", "$$"), **SET)
    assert config.agent.id == "3"  # in quotes it stays a text
    assert config.bundle.path == tmp_path / "models" / "bottle"
    (mqtt,) = config.sinks
    assert (mqtt.host, mqtt.port, mqtt.user) == ("broker.local", 8884, "line-3")
    assert mqtt.topics == "plant/$$/{agent}/{what}"


@pytest.mark.parametrize("missing", SET)
@pytest.mark.parametrize("empty", [False, True])
def test_a_variable_that_is_missing_or_empty_is_named_with_its_key(load, missing, empty):
    variables = {name: value for name, value in SET.items() if name != missing}
    if empty:
        variables[missing] = ""
    with pytest.raises(ConfigurationError) as caught:
        load(TEXT, **variables)
    said = str(caught.value)
    assert f"the environment variable {missing} is not set, or empty" in said
    assert f"${{{missing}}}" in said
    assert "agent.yaml, line " in said
    key = {"LINE": "agent.id", "MODEL": "bundle.path", "BROKER": "mqtt.host"}
    assert said.startswith(key.get(missing, "mqtt."))


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("PORT", "hunter2", "mqtt.port"),
        ("PORT", "99999", "mqtt.port"),
        ("BROKER", "host hunter2", "mqtt.host"),
        ("USER_OF_BROKER", "hunter2\x07", "mqtt.user"),
        ("USER_OF_BROKER", "hunter2" * 99, "mqtt.user"),
        ("LINE", "hunter2/#", "agent.id"),
        ("MODEL", "rtsp://hunter2@host", "bundle.path"),
    ],
)
def test_what_a_variable_holds_is_never_shown(load, name, value, key):
    text = TEXT.replace("$${hall}", "x")
    if name == "MODEL":
        text = text.replace("models/${", "${")
    with pytest.raises(ConfigurationError) as caught:
        load(text, **{**SET, name: value})
    said = str(caught.value)
    assert said.startswith(f"{key}: ")
    assert f"${{{name}}}" in said
    assert value not in said
    assert "hunter2" not in said


def test_nor_in_an_error_about_all_that_stands_around_it(load):
    text = TEXT.replace("mqtt:\n", "mqtt:\n -\n")
    with pytest.raises(ConfigurationError) as caught:
        load(text, **{**SET, "USER_OF_BROKER": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_a_value_is_a_value_and_never_yaml(load):
    config = load(
        TEXT.replace("$${hall}", "x"), **{**SET, "USER_OF_BROKER": "a, commands: [pause]} # &x *x"}
    )
    assert config.sinks[0].user == "a, commands: [pause]} # &x *x"
    assert config.sinks[0].commands == ("ping", "replay")


@pytest.mark.parametrize("written", ["${}", "${a b}", "${1}", "${X:-default}"])
def test_what_is_no_name_is_refused(load, written):
    text = TEXT.replace("$${hall}", "x").replace('"${USER_OF_BROKER}"', f'"{written}"')
    with pytest.raises(ConfigurationError, match="is no name of an environment variable"):
        load(text, **SET)


def test_without_quotes_between_braces_the_remedy_is_said(load):
    with pytest.raises(ConfigurationError, match=r"put .* into quotes"):
        load(TEXT.replace('"${LINE}"', "a").replace('"models/${MODEL}"', "${MODEL}"), **SET)


def test_the_command_ends_with_code_2(tmp_path):
    (tmp_path / "agent.yaml").write_text(TEXT)
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from agent.cli import main; main()"),
            *("run", "--config", tmp_path / "agent.yaml"),
        ],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin", "MODEL": "x"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("agent: ")
    assert "is not set" in done.stderr
    assert done.stderr.count("\n") == 1
