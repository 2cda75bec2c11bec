"""`agent.yaml` → `Config`: checked once, at the start; what is wrong is said in one line."""

import dataclasses
import difflib
import json
import reprlib
import types
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from agent.cameras import CameraSettings
from agent.cameras.settings import LineSettings
from agent.evidence import EvidenceSettings
from agent.messages import check_topics
from agent.mqtt import MqttSettings
from agent.retention import Limits
from engine.backends import MAX_PIXELS, BackendChoice, FallbackName, PrecisionChoice
from engine.errors import ConfigurationError
from engine.spec import spec

_MAX_BYTES: Final = 1_000_000
_MAX_DEPTH: Final = 10


@spec
class AgentSettings:
    """Who this agent is: `id` is part of every topic and of every alarm's id."""

    id: Annotated[str, Field(min_length=1, max_length=64)]


@spec
class BundleSettings:
    """Which model inspects, and what runs it.

    `auto` is the backend and the precision that the threshold was set with; `agent calibrate`,
    which sets it, takes the fastest. A backend that cannot be used stops the agent, unless
    `fallback` names another.
    """

    path: Path
    precision: PrecisionChoice = "auto"
    require_signature: Path | None = None
    """The public key that must have signed the manifest; without it none has to."""
    backend: BackendChoice = "auto"
    fallback: FallbackName | None = None
    max_megapixels: Annotated[float, Field(gt=0, le=1000)] = MAX_PIXELS / 1e6
    """A GPU keeps memory for frames up to this size; parts with larger ones end as ERROR."""


@spec
class LedgerSettings:
    """The file that holds every trigger's end and the messages still to be sent.

    Parts go `keep_days` after their verdict, or earlier where the file would outgrow `max_mb`;
    what was delivered goes first. `memory_mb` bounds what waits in memory while the disk is full
    or away.
    """

    path: Path = Path("ledger.sqlite")
    keep_days: Annotated[float, Field(gt=0, le=36_500)] = 30.0
    max_mb: Annotated[int, Field(ge=32, le=1_000_000)] = 1000
    memory_mb: Annotated[int, Field(ge=1, le=4096)] = 64

    @property
    def limits(self) -> Limits:
        """What the ledger may keep."""
        return Limits(keep_ns=round(self.keep_days * 86_400e9), max_bytes=self.max_mb * 1_000_000)


@spec
class Config:
    """All of `agent.yaml`; paths are absolute or relative to the working directory.

    A single camera may be written as `camera` there, in place of a list of one.
    """

    agent: AgentSettings
    bundle: BundleSettings
    cameras: Annotated[tuple[CameraSettings, ...], Field(min_length=1)]
    mqtt: MqttSettings
    line: LineSettings = LineSettings()
    ledger: LedgerSettings = LedgerSettings()
    evidence: EvidenceSettings = EvidenceSettings()

    @property
    def lines(self) -> dict[str, LineSettings]:
        """What the line expects of each camera's parts, by the camera's name."""
        return {camera.name: camera.line or self.line for camera in self.cameras}

    @property
    def longest_deadline_s(self) -> float | None:
        """The longest of the cameras' deadlines, in seconds; `None` where one has none."""
        deadlines = [line.deadline_s for line in self.lines.values()]
        known = [deadline for deadline in deadlines if deadline is not None]
        return max(known) if len(known) == len(deadlines) else None


_CONFIG: Final = TypeAdapter(Config)
_Key = tuple[str, ...]


def load_config(path: Path) -> Config:
    """Read a configuration; relative paths in it start at its own folder.

    Raises `ConfigurationError`, naming key, value, remedy, file and line, for the first thing
    that cannot work. Touches nothing but the file.
    """
    written = _read(path)
    try:
        # Through JSON, where strictness knows paths and lists but takes no "5" for a number.
        config = _CONFIG.validate_json(json.dumps(written.listed(), default=str), strict=True)
    except ValidationError as error:
        raise _explained(error, written) from None
    _check_names(config, written)
    check_topics(config.mqtt.topics, config.agent.id)
    anchored: Config = _anchored(config, path.parent)
    return anchored


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What a configuration file says, and on which line each of its keys stands."""

    path: Path
    data: dict[str, Any]
    lines: Mapping[_Key, int]

    def listed(self) -> dict[str, Any]:
        """The data with `camera` as the only one of `cameras`; refuses both at once."""
        if "camera" not in self.data:
            return self.data
        if "cameras" in self.data:
            remedy = "stands beside camera; write one of them"
            raise self.refused(("cameras",), self.data["cameras"], remedy)
        rest = {key: value for key, value in self.data.items() if key != "camera"}
        return {**rest, "cameras": [self.data["camera"]]}

    def key(self, location: Sequence[int | str]) -> Sequence[int | str]:
        """Where in the file stands what stands at `location` in what is `listed`."""
        if location[:1] != ("cameras",) or "cameras" in self.data:
            return location
        return ("camera", *location[2:])

    def refused(self, key: _Key, value: object, remedy: str) -> ConfigurationError:
        """The error for a value of this file; `remedy` ends with its place."""
        line = next(
            (self.lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.lines), None
        )
        place = f"{self.path}, line {line}" if line else str(self.path)
        shown = None if value is None else _Shown("…" if "password" in key[-1] else _short(value))
        return ConfigurationError(".".join(key), shown, f"{remedy} ({place})")


class _Loader(yaml.SafeLoader):
    """YAML without duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - the base class's signature
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is written twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> _Written:
    where = str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigurationError(
            "--config", where, "there is no such file; name one with --config"
        ) from None
    except OSError as error:
        raise ConfigurationError("--config", where, f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigurationError("--config", where, "is not text in UTF-8") from None
    if len(raw) > _MAX_BYTES:
        raise ConfigurationError("--config", where, f"is larger than {_MAX_BYTES} bytes")
    try:
        _check_shape(text)
        loader = _Loader(text)
        node = loader.get_single_node()
        data = {} if node is None else loader.construct_document(node)
        lines = _lines(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigurationError("--config", where + line, error.problem or str(error)) from None
    except _ShapeError as error:
        raise ConfigurationError("--config", where, str(error)) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigurationError("--config", where, f"is not YAML ({error})") from None
    if not isinstance(data, dict):
        remedy = "should hold keys such as agent:, bundle: and camera:"
        raise ConfigurationError("--config", where, remedy)
    # A section whose keys are all commented out is left to its defaults.
    known = {key: value for key, value in data.items() if value is not None}
    return _Written(path=path, data=known, lines=lines)


class _ShapeError(ValueError):
    """YAML of a shape that no configuration has."""


def _check_shape(text: str) -> None:
    """Refuse what takes few bytes to write and much memory or time to read."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            problem = f"the alias *{event.anchor} is not allowed: write its value again"
        elif depth > _MAX_DEPTH:
            problem = f"nested more than {_MAX_DEPTH} levels deep"
        else:
            continue
        raise _ShapeError(problem)


def _lines(node: yaml.Node | None, at: _Key) -> dict[_Key, int]:
    found = {}
    below: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        below = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        below = [(str(index), item, item) for index, item in enumerate(node.value)]
    for step, mark, value in below if len(at) < 4 else ():
        found[*at, step] = mark.start_mark.line + 1
        found |= _lines(value, (*at, step))
    return found


def _check_names(config: Config, written: _Written) -> None:
    names = [camera.name for camera in config.cameras]
    for index, name in enumerate(names):
        if not name.isprintable():
            problem = "has characters that cannot be printed; write others"
        elif name in names[:index]:
            problem = "another camera has this name; give each its own"
        else:
            continue
        key = tuple(map(str, written.key(("cameras", index, "name"))))
        raise written.refused(key, name, problem)


def _explained(error: ValidationError, written: _Written) -> ConfigurationError:
    errors = error.errors(include_url=False)
    # What is missing is often there by a wrong name.
    first = next((e for e in errors if e["type"] == "unexpected_keyword_argument"), errors[0])
    key, value = _located(written.key(first["loc"]), written.data)
    match first["type"]:
        case "unexpected_keyword_argument":
            remedy = _unknown(key)
        case "missing":
            value, remedy = None, _missing(key)
        case "union_tag_not_found":
            key, value, remedy = (*key, "type"), None, f"is missing; write {_camera_types()}"
        case "union_tag_invalid":
            key, value = (*key, "type"), value.get("type")
            remedy = f"write {_camera_types()}"
        case "dict_type" if isinstance(value, list):
            remedy = "is one camera; a list goes with cameras"
        case "dataclass_type" | "dataclass_exact_type" | "dict_type":
            remedy = f"should hold keys, such as {', '.join(_known(key)[:3])}"
        case "tuple_type":
            remedy = "should be a list"
        case "too_short" if key == ("cameras",):
            remedy = "names no camera; write at least one"
        case _:
            message = first["msg"].removeprefix("Value error, ")
            remedy = message[0].lower() + message[1:].replace("Input should", "should")
            remedy = remedy.replace("input should", "should")
    return written.refused(key, value, remedy)


class _Shown(str):
    """A value already in the form to be shown."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _short(value: object) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else value[:79] + "…")
    return reprlib.repr(value)


def _located(location: Sequence[int | str], data: object) -> tuple[_Key, Any]:
    """The key in the file, without pydantic's own steps into unions, and what is written there."""
    key: list[str] = []
    value: Any = data
    for step in location:
        if isinstance(value, dict) and step not in value and step == value.get("type"):
            continue
        key.append(str(step))
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            value = None
    return tuple(key), value


def _missing(key: _Key) -> str:
    if key == ("camera",):
        return f"is missing; write camera.type, {_camera_types()}"
    wanted = [".".join((*key, name)) for name in _known(key, required=True)]
    return f"is missing; write {', '.join(wanted)}" if wanted else "is missing; write it"


def _unknown(key: _Key) -> str:
    if "password" in key[-1]:
        return (
            "passwords do not belong here; name a file with mqtt.password_file "
            "or a variable with mqtt.password_variable"
        )
    known = _known(key[:-1])
    near = difflib.get_close_matches(key[-1], known, n=1, cutoff=0.5)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    return f"unknown key; known here: {', '.join(known)}"


def _known(key: _Key, *, required: bool = False) -> list[str]:
    """The keys that may stand below `key`, or those that have to."""
    classes: set[Any] = {Config}
    for step in ("cameras", *key[1:]) if key[:1] == ("camera",) else key:
        if step.isdecimal():  # one of a list
            continue
        hints = [get_type_hints(each, include_extras=True).get(step) for each in classes]
        classes = {found for hint in hints for found in _classes(hint)}
    return sorted(
        {
            field.name
            for each in classes
            for field in dataclasses.fields(each)
            if not required or _is_required(field)
        }
        | ({"camera"} if not key else set())
    )


def _is_required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _classes(hint: Any) -> list[Any]:
    if dataclasses.is_dataclass(hint):
        return [hint]
    if get_origin(hint) in {Annotated, Union, types.UnionType, tuple}:
        return [found for part in get_args(hint) for found in _classes(part)]
    return []


def _camera_types() -> str:
    hints = [get_type_hints(each)["type"] for each in _classes(CameraSettings)]
    return " or ".join(get_args(hint)[0] for hint in hints)


def _anchored(value: Any, folder: Path) -> Any:
    """`value` with every relative path in it put below `folder`."""
    if isinstance(value, Path):
        return folder / value.expanduser()
    if isinstance(value, tuple):
        return tuple(_anchored(each, folder) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value,
            **{
                f.name: _anchored(getattr(value, f.name), folder) for f in dataclasses.fields(value)
            },
        )
    return value
