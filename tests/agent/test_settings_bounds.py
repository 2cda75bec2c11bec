"""Every value that a configuration can hold has bounds, and at its bounds the agent runs."""

import json
import math
import os
import subprocess
import sys
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from agent.registry import ROOMS
from agent.settings import Config, load_config
from agent.settings_values import AnyPath
from engine.errors import ConfigurationError
from engine.registry import Kinds

ROOT = Path(__file__).parents[2]
USUAL = {
    "path": "parts",
    "host": "localhost",
    "id": "line-3",
    "what": "x",
    "topic": "part",
    "device": "/dev/ttyACM0",
    "chip": "/dev/gpiochip0",
    "url": "rtsp://camera/1",
    "address": "https://registry.example/atac",
    "producer": "a.cti",
}
EXTREMES: list[Any] = [
    *(0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(10**400), 0.5, 1e10, 1e13, 1e-300, 1e308, -1e308),
    *(math.nan, math.inf, -math.inf, True, False, None, [], {}, [[]], ["x"], [None]),
    *("", " ", "x", "x" * 5_000, "\0", "\n", "a\nb", "\ud800", "﻿x", "é" * 300, "5", "1e3"),
    *("/", ".", "..", "~", "~nosuchuser/x", "~/x", "/dev/zero", "/" * 2000, "a/" * 3000),
    *("rtsp://user:secret@host/x", "{what}", "{", "{what:9999999999}", "*", "$SYS", "é/{what}"),
]


def parts_of(hint: Any) -> list[Any]:
    """A hint, and all that it is made of."""
    return [hint, *(each for part in get_args(hint) for each in parts_of(part))]


@cache
def classes_below(hint: Any) -> list[type[Any]]:
    found = [each for each in parts_of(hint) if isinstance(each, type) and is_dataclass(each)]
    kinds = [each for each in parts_of(hint) if isinstance(each, Kinds)]
    return found + [each.find(name).settings for each in kinds for name in each.names()]


@cache
def all_settings() -> list[type[Any]]:
    """Every class of settings that a configuration can hold."""
    found: list[type[Any]] = []
    waiting: list[type[Any]] = [Config]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.append(each)
            hints = get_type_hints(each, include_extras=True)
            waiting += [below for hint in hints.values() for below in classes_below(hint)]
    return found


def bounds(settings_class: type[Any], name: str) -> list[dict[str, Any]]:
    """The JSON schemas of all single values that a field may hold."""
    schema = TypeAdapter(settings_class).json_schema()
    found: list[dict[str, Any]] = []
    waiting = [schema["properties"][name]]
    while waiting:
        each = waiting.pop()
        waiting += each.get("anyOf", [])
        waiting += [each["items"]] if isinstance(each.get("items"), dict) else []
        if each.get("type") in {"integer", "number", "string"} and not {"enum", "const"} & {*each}:
            found.append(each)
    return found


FIELDS = [(each, field.name) for each in all_settings() for field in fields(each)]


@pytest.mark.parametrize(("settings_class", "name"), FIELDS)
def test_every_value_has_bounds(settings_class, name):
    if name == "type" and settings_class in {room._settings for room in ROOMS}:
        return  # what the kinds have as a literal
    hint = get_type_hints(settings_class, include_extras=True)[name]
    if Path in parts_of(hint):
        assert AnyPath in parts_of(hint), "a path should be agent.settings_values.AnyPath"
        return
    for schema in bounds(settings_class, name):
        keys = {*schema}
        if schema["type"] == "string":
            assert "maxLength" in keys, "a text should be Name or Text of agent.settings_values"
        else:
            assert keys & {"minimum", "exclusiveMinimum"}, "there is no smallest value"
            assert keys & {"maximum", "exclusiveMaximum"}, "there is no largest value"


def example(settings_class: type[Any]) -> dict[str, Any]:
    """The least that settings of this class may be written as."""
    hints = get_type_hints(settings_class, include_extras=True)
    written: dict[str, Any] = {}
    for field in fields(settings_class):
        kind = get_args(hints[field.name])
        if field.name == "type" and get_origin(hints["type"]) is Literal:
            written["type"] = kind[0]
        elif field.default is MISSING and field.default_factory is MISSING:
            written[field.name] = USUAL.get(field.name, 1)
    return written


def placed(settings_class: type[Any], one: dict[str, Any]) -> dict[str, Any] | None:
    """A configuration in which settings of this class stand, as `one` says."""
    config: dict[str, Any] = {
        "agent": {"id": "line-3"},
        "bundle": {"path": "models/bottle"},
        "cameras": [{"type": "conveyor"}],
        "sinks": [{"type": "mqtt", "host": "localhost"}],
    }
    if settings_class is Config:
        return config | one
    for hint_class in all_settings():
        for name, hint in get_type_hints(hint_class, include_extras=True).items():
            if settings_class not in classes_below(hint):
                continue
            many = any(get_origin(each) is tuple for each in parts_of(hint))
            here = {name: [one] if many else one}
            return (
                config | here
                if hint_class is Config
                else placed(hint_class, _with(hint_class, here))
            )
    return None


def _with(settings_class: type[Any], here: dict[str, Any]) -> dict[str, Any]:
    is_base = settings_class in {room._settings for room in ROOMS}
    return {**({"type": "conveyor"} if is_base else example(settings_class)), **here}


def loaded(folder: Path, config: dict[str, Any]) -> Config | str:
    path = folder / "agent.yaml"
    # JSON is YAML but for its NaN, its infinities, and the sign of an exponent.
    text = json.dumps(config).replace("NaN", ".nan").replace("Infinity", ".inf")
    path.write_text(text)
    try:
        return load_config(path)
    except ConfigurationError as error:
        message = str(error)
    assert "\n" not in message
    assert "secret" not in message.replace("secret_key_", "")  # what S3 calls it
    return message


@pytest.mark.parametrize("settings_class", all_settings())
def test_an_extreme_value_is_refused_in_one_line_or_taken(settings_class, tmp_path):
    """Nothing escapes as another error."""
    for field in fields(settings_class):
        for value in EXTREMES:
            config = placed(settings_class, {**example(settings_class), field.name: value})
            if config is not None:
                loaded(tmp_path, config)


@settings(max_examples=100)
@given(data=st.data())
def test_no_mixture_of_values_escapes_as_another_error(data, tmp_path_factory):
    """Several keys at once, with values that nobody would write and some that nobody should."""
    anything = st.one_of(
        st.sampled_from(EXTREMES), st.integers(), st.floats(), st.text(), st.dates().map(str)
    )
    folder = tmp_path_factory.getbasetemp()
    settings_class = data.draw(st.sampled_from(all_settings()))
    names = [field.name for field in fields(settings_class)]
    changes = data.draw(st.dictionaries(st.sampled_from(names), anything, max_size=4))
    config = placed(settings_class, {**example(settings_class), **changes})
    if config is not None:
        loaded(folder, config)


def at_bounds(settings_class: type[Any], end: str) -> dict[str, Any]:
    """Settings of this class with every number at its smallest or at its largest value."""
    written = example(settings_class)
    hints = get_type_hints(settings_class, include_extras=True)
    for name, hint in ((field.name, hints[field.name]) for field in fields(settings_class)):
        below = [each for each in classes_below(hint) if get_origin(hint) is not tuple]
        numbers = [each for each in bounds(settings_class, name) if each["type"] != "string"]
        if numbers:
            (number,) = numbers
            limit = number.get(end, number.get(f"exclusive{end[0].upper()}{end[1:]}"))
            written[name] = limit if end in number else limit - 1
        elif below and not any(isinstance(each, Kinds) for each in parts_of(hint)):
            written[name] = at_bounds(below[0], end)
    return written


@pytest.mark.parametrize("end", ["minimum", "maximum"])
def test_the_agent_runs_with_every_number_at_its_bound(end, tmp_path):
    config = at_bounds(Config, end)
    config["bundle"]["path"] = str(ROOT / "agent" / "demo_bundle")
    config["bundle"].pop("require_signature", None)
    config.pop("products", None)  # stand in place of a bundle
    camera = at_bounds(next(each for each in all_settings() if "Conveyor" in each.__name__), end)
    # Nobody waits for a part a day: the run ends with the first.
    config["cameras"] = [{**camera, "parts": 1}]
    sink = at_bounds(next(each for each in all_settings() if each.__name__ == "MqttSettings"), end)
    sink.pop("tls", None)
    config["sinks"] = [{**sink, "host": "127.0.0.1", "port": 9}]
    assert not isinstance(loaded(tmp_path, config), str), loaded(tmp_path, config)
    done = subprocess.run(
        [sys.executable, "-c", "from agent.cli import main; main()", "run", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["triggers"] == 1


def test_the_kinds_of_every_room_are_among_them():
    names = {each.__name__ for each in all_settings()}
    assert {"ConveyorSettings", "MqttSettings", "TlsSettings", "LineSettings"} <= names
