"""What pydantic found wrong in `agent.yaml`, in one line with key, value, remedy and place."""

import dataclasses
import difflib
import types
from collections.abc import Sequence
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from agent.settings_file import SHORT_SERVICES, Key, Written
from engine.errors import ConfigurationError, KindError
from engine.registry import Kinds


def explained(error: ValidationError, written: Written, root: type[Any]) -> ConfigurationError:
    """The first thing that is wrong in `written`, which should hold a `root`."""
    errors = error.errors(include_url=False)
    # What is missing is often there by a wrong name.
    first = next((e for e in errors if e["type"] == "unexpected_keyword_argument"), errors[0])
    listed, location = written.listed(), first["loc"]
    key = tuple(map(str, written.key(location)))
    value = _value(listed, location)
    match first["type"]:
        case "unexpected_keyword_argument":
            remedy = _unknown(key[-1], _keys(root, listed, location[:-1]))
        case "missing":
            key, remedy = _missing(root, listed, location, key)
        case "union_tag_not_found":
            key, value, remedy = (*key, "type"), None, f"is missing; {_types(root, location)}"
        case "kind":
            key, value, remedy = (*key, "type"), value.get("type"), first["msg"]
        case "dict_type" if isinstance(value, list):
            remedy = f"is one {key[0]}; a list goes with {location[0]}"
        case "dataclass_type" | "dataclass_exact_type" | "dict_type":
            remedy = f"should hold keys, such as {', '.join(_keys(root, listed, location)[:3])}"
        case "string_type" if isinstance(value, int | float):
            remedy = f'should be text; write it in quotes: "{value}"'
        case "tuple_type":
            remedy = "should be a list"
        case "too_short" if isinstance(value, list):
            remedy = f"names no {key[-1].removesuffix('s')}; write at least one"
        case _:
            message = first["msg"].removeprefix("Value error, ")
            remedy = message[0].lower() + message[1:].replace("Input should", "should")
            remedy = remedy.replace("input should", "should")
    return written.refused(key, value, remedy)


def _value(data: object, location: Sequence[int | str]) -> Any:
    value: Any = data
    for step in location:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _missing(
    root: type[Any], data: object, location: Sequence[int | str], key: Key
) -> tuple[Key, str]:
    if location == ("cameras",):
        return ("camera",), f"is missing; write camera.type: {_types(root, location)}"
    if location == ("sinks",):
        return ("mqtt",), "is missing; write mqtt.host"
    required = [".".join((*key, name)) for name in _keys(root, data, location, required=True)]
    return key, f"is missing; write {', '.join(required) or 'it'}"


def _unknown(name: str, known: list[str]) -> str:
    if "password" in name:
        return (
            "passwords do not belong here; name a file with mqtt.password_file "
            "or a variable with mqtt.password_variable"
        )
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    return f"unknown key; known here: {', '.join(known)}"


def _types(root: type[Any], location: Sequence[int | str]) -> str:
    """The types that the kinds at `location` may have."""
    kinds = next(each for hint in _hints(root, None, location) for each in _kinds(hint))
    return f"write {' or '.join(kinds.names())}"


def _keys(
    root: type[Any], data: object, location: Sequence[int | str], *, required: bool = False
) -> list[str]:
    """The keys that may stand at `location`, or those that have to."""
    value = _value(data, location)
    keys = {
        field.name
        for hint in _hints(root, data, location)
        for each in _classes(hint, value)
        for field in dataclasses.fields(each)
        if not required or _is_required(field)
    }
    return sorted(keys | ({"camera", "mqtt", *SHORT_SERVICES} if not location else set()))


def _hints(root: type[Any], data: object, location: Sequence[int | str]) -> list[Any]:
    """The type hints of what stands at `location`."""
    hints: list[Any] = [root]
    for depth, step in enumerate(location):
        if isinstance(step, int):  # one of a list, which its hint names as well
            continue
        above = _value(data, location[:depth])
        classes = [each for hint in hints for each in _classes(hint, above)]
        found = [get_type_hints(each, include_extras=True).get(step) for each in classes]
        hints = [hint for hint in found if hint is not None]
    return hints


def _classes(hint: Any, value: object) -> list[Any]:
    """The settings classes that `value` may be of, by its hint."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    if get_origin(hint) is Annotated and isinstance(value, dict):
        for kinds in _kinds(hint):
            try:
                return [kinds.find(str(value.get("type"))).settings]
            except KindError:
                break
    if get_origin(hint) in {Annotated, Union, types.UnionType, tuple}:
        return [found for part in get_args(hint) for found in _classes(part, value)]
    return []


def _kinds(hint: Any) -> list[Kinds[Any]]:
    if isinstance(hint, Kinds):
        return [hint]
    return [found for part in get_args(hint) for found in _kinds(part)]


def _is_required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing
