"""The user's text files: read once, in one way, and in the limits that such files have."""

import os
import re
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from engine.errors import ConfigurationError, without_secrets
from engine.regular_file import open_regular

_MAX_BYTES: Final = 1_000_000
_MAX_DEPTH: Final = 10
_EXPONENT: Final = ("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"))
_SHORT: Final = {"camera": "cameras", "mqtt": "sinks"}
"""Keys that stand in place of a list of one."""
SHORT_SERVICES: Final = ("page",)
"""Services that may be written as keys of their own, beside the list of the others."""

_VARIABLE: Final = re.compile(r"(\$?)\$\{([^{}]*)\}")
"""`${NAME}`, or `$${NAME}` for that text itself."""
_VARIABLE_NAME: Final = re.compile("[A-Za-z_][A-Za-z0-9_]*")

Key = tuple[str, ...]


def read_text(path: Path, *, key: str, max_bytes: int = _MAX_BYTES) -> str:
    """The text of a regular file in UTF-8, without its byte order mark.

    Args:
        path: The file.
        key: The key of the configuration, or the option, that names it.
        max_bytes: Larger files are refused.

    Returns:
        The text as it stands in the file, with all its line ends.

    Raises:
        ConfigurationError: There is no such file, or it is no such text.
    """
    named = str(path)
    try:
        with open_regular(path) as file:
            raw = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise ConfigurationError(
            key, named, f"there is no such file; name one with {key}"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(key, named, f"cannot be read ({reason})") from None
    if len(raw) > max_bytes:
        raise ConfigurationError(key, named, f"is larger than {max_bytes} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigurationError(key, named, "is not text in UTF-8") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a configuration file says, and on which line each of its keys stands.

    `variables` has the texts that named environment variables, as they stand in the file: they
    are shown in place of what the variables hold.
    """

    path: Path
    data: dict[str, Any]
    lines: Mapping[Key, int]
    variables: Mapping[Key, str] = field(default_factory=dict)

    def listed(self) -> dict[str, Any]:
        """The data with short forms written as lists of one; refuses both forms at once."""
        listed = dict(self.data)
        for short, long in _SHORT.items():
            if short not in listed:
                continue
            if long in listed:
                remedy = f"stands beside {short}; write all in {long}"
                raise self.refused((long,), self.data[long], remedy)
            one = listed.pop(short)
            named = short != "mqtt" or not isinstance(one, dict)
            listed[long] = [one if named else {"type": short, **one}]
        products = listed.get("products")
        if isinstance(products, list):
            listed["products"] = [self._with_cameras(n, one) for n, one in enumerate(products)]
        for short in self._short_services():
            one, others = listed.pop(short), listed.get("services", [])
            if isinstance(others, list):
                one = {"type": short, **one} if isinstance(one, dict) else one
                listed["services"] = [*others, one]
        return listed

    def key(self, location: Sequence[int | str]) -> Sequence[int | str]:
        """Where in the file stands what stands at `location` in what is `listed`."""
        for short, long in _SHORT.items():
            if location[:1] == (long,) and long not in self.data:
                return (short, *location[2:])
        if location[:1] == ("products",) and location[2:3] == ("cameras",):
            product = self.data["products"][location[1]]
            return location if "cameras" in product else (*location[:2], "camera", *location[4:])
        others = self.data.get("services", [])
        if location[:1] == ("services",) and len(location) > 1 and isinstance(others, list):
            index = int(location[1]) - len(others)
            if index >= 0:
                return (self._short_services()[index], *location[2:])
        return location

    def _with_cameras(self, index: int, product: Any) -> Any:
        """A product with its `camera` as a list of one."""
        if not isinstance(product, dict) or "camera" not in product:
            return product
        if "cameras" in product:
            key = ("products", str(index), "cameras")
            raise self.refused(
                key, product["cameras"], "stands beside camera; write all in cameras"
            )
        others = {name: value for name, value in product.items() if name != "camera"}
        return others | {"cameras": [product["camera"]]}

    def _short_services(self) -> list[str]:
        return [short for short in SHORT_SERVICES if short in self.data]

    def refused(self, key: Key, value: object, remedy: str) -> ConfigurationError:
        """The error for a value of this file; `remedy` ends with its place."""
        line = next(
            (self.lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.lines), None
        )
        place = f"{self.path}, line {line}" if line else str(self.path)
        written = self._as_written(key, value)
        return ConfigurationError(".".join(key), shown(key, written), f"{remedy} ({place})")

    def _as_written(self, key: Key, value: object) -> object:
        """`value` of `key` without what environment variables hold."""
        if key in self.variables:
            return self.variables[key]
        if isinstance(value, dict):
            return {name: self._as_written((*key, str(name)), each) for name, each in value.items()}
        if isinstance(value, list):
            return [self._as_written((*key, str(n)), each) for n, each in enumerate(value)]
        return value


def read_block(path: Path, key: str) -> tuple[bool, Any]:
    """Whether a file has this key of its own, and what it says, where the rest cannot be read.

    `None` stands for what cannot be read either.
    """
    try:
        lines = read_text(path, key="--config").splitlines()
    except ConfigurationError:
        return False, None
    start = next((n for n, line in enumerate(lines) if re.match(rf"{key}\s*:", line)), None)
    if start is None:
        return False, None
    rest = lines[start + 1 :]
    end = next((n for n, line in enumerate(rest) if line[:1].strip() not in {"", "#"}), len(rest))
    text = "\n".join([lines[start], *rest[:end]])
    try:
        _check_shape(text)
        return True, yaml.load(text, Loader=_Loader)[key]  # noqa: S506 - ours, a SafeLoader
    except (yaml.YAMLError, ValueError, KeyError, TypeError):
        return True, None


def read_yaml(path: Path, *, key: str = "--config") -> Written:
    """Read a configuration's text; raises `ConfigurationError` for what is no plain YAML.

    `key` is the option that names the file.
    """
    where = str(path)
    text = read_text(path, key=key)
    try:
        _check_shape(text)
        loader = _Loader(text)
        node = loader.get_single_node()
        lines = _lines(node, ())
        variables = _expanded(loader, node, Written(path=path, data={}, lines=lines))
        data = {} if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = error.problem or str(error)
        if mark and "${" in "".join(text.splitlines()[mark.line : mark.line + 1]):
            problem += "; put ${…} into quotes where it stands between braces"
        raise ConfigurationError(key, where + line, problem) from None
    except _ShapeError as error:
        raise ConfigurationError(key, where, str(error)) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigurationError(key, where, f"is not YAML ({error})") from None
    if not isinstance(data, dict):
        such = " such as agent:, bundle: and camera:" if key == "--config" else ""
        remedy = f"should hold keys{such}"
        raise ConfigurationError(key, where, remedy)
    # A section whose keys are all commented out is left to its defaults.
    known = {key: value for key, value in data.items() if value is not None}
    written = Written(path=path, data=known, lines=lines, variables=variables)
    _check_values(written, (), known)
    return written


def written_key(path: Path, location: Sequence[int | str]) -> Sequence[int | str]:
    """Where in the file at `path` stands what stands at `location` in its list form."""
    return read_yaml(path).key(location)


def edit(path: Path, at: Sequence[int | str], values: Mapping[str, float]) -> list[str]:
    """Write numbers into the mapping at key `at`, and leave all else as it stands.

    Args:
        path: The file; it is replaced at once, or not at all.
        at: A key whose value is a mapping with at least one key.
        values: Keys of this mapping and their new values.

    Returns:
        What was written, such as `min_ms: 20`.

    Raises:
        ConfigurationError: The file cannot be read or written.
    """
    path = path.resolve()
    text = before = read_text(path, key="--config")
    written = {key: f"{value:.10g}" for key, value in values.items()}
    lines = [f"{key}: {value}" for key, value in written.items()]
    for key, value in reversed(written.items()):
        text = _with(text, _mapping(yaml.compose(text, Loader=yaml.SafeLoader), at), key, value)
    wanted, found = (yaml.safe_load(each) for each in (before, text))
    _mapping_in(wanted, at).update({key: yaml.safe_load(value) for key, value in written.items()})
    unfinished = path.with_name(f".{path.name}.new")
    try:
        if found != wanted:
            raise OSError("its form is an unusual one")  # noqa: TRY301 - the same remedy
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        remedy = f"cannot be written ({error.strerror or error}); write {', '.join(lines)} yourself"
        raise ConfigurationError("--config", str(path), remedy) from None
    return lines


def _mapping(node: Any, at: Sequence[int | str]) -> yaml.MappingNode:
    for step in at:
        node = next(value for name, _, value in _below(node) if name == str(step))
    assert isinstance(node, yaml.MappingNode)
    return node


def _mapping_in(data: Any, at: Sequence[int | str]) -> dict[str, Any]:
    for step in at:
        data = data[step]
    assert isinstance(data, dict)
    return data


def _with(text: str, mapping: yaml.MappingNode, key: str, value: str) -> str:
    """`text` with `key` in `mapping`: its value replaced, or beside another key."""
    for name, old in mapping.value:
        if name.value == key:
            return text[: old.start_mark.index] + value + text[old.end_mark.index :]
    name, beside = next(one for one in mapping.value if isinstance(one[1], yaml.ScalarNode))
    end = beside.end_mark.index
    if mapping.flow_style:
        return f"{text[:end]}, {key}: {value}{text[end:]}"
    line_end = text.find("\n", end)
    end = len(text) if line_end < 0 else line_end
    before = text[:end].removesuffix("\r")
    new_line = "\r\n" if before != text[:end] else "\n"
    return f"{before}{new_line}{' ' * name.start_mark.column}{key}: {value}{text[len(before) :]}"


class _Shown(str):
    """A value already in the form to be shown."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def shown(key: Key, value: object) -> object:
    """`value` as it may be shown: short, and without passwords; `None` where there is none."""
    if value is None:
        return None
    if "password" in key[-1]:
        return _Shown("…")
    text = without_secrets(value if isinstance(value, str) else repr(value))
    text = text if len(text) <= 80 else text[:79] + "…"
    return text if isinstance(value, str) else _Shown(text)


def _check_values(written: Written, key: Key, value: object) -> None:
    """Refuse what no setting can mean: a key without a value, or text that cannot be written."""
    if value is None:
        raise written.refused(key, None, "is blank; write a value, or remove the key")
    if isinstance(value, str) and not value.isprintable():
        raise written.refused(key, value, "has characters that cannot be printed; write others")
    if isinstance(value, dict):
        for name, below in value.items():
            if not isinstance(name, str) or not name.isprintable():
                raise written.refused((*key, str(name)), None, "is no key; write a name")
            _check_values(written, (*key, name), below)
    if isinstance(value, list):
        for index, below in enumerate(value):
            _check_values(written, (*key, str(index)), below)


class _Loader(yaml.SafeLoader):
    """YAML without duplicate keys; a date is text, and 1e3 a number."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class looks it up
        first: [
            *((tag, form) for tag, form in forms if not tag.endswith(":timestamp")),
            *([_EXPONENT] if first in "-+0123456789" else []),
        ]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

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


class _ShapeError(ValueError):
    """YAML of a shape that no configuration has."""


def _check_shape(text: str) -> None:
    """Refuse what takes few bytes to write and much memory or time to read, and foreign types."""
    depth = 0
    event: Any
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            problem = f"the alias *{event.anchor} is not allowed: write its value again"
        elif getattr(event, "tag", None) not in {None, "!"}:
            problem = f"the tag {event.tag} is not allowed: write a plain value"
        elif depth > _MAX_DEPTH:
            problem = f"nested more than {_MAX_DEPTH} levels deep"
        else:
            continue
        raise _ShapeError(f"line {event.start_mark.line + 1}: {problem}")


def _expanded(loader: Any, node: yaml.Node | None, written: Written) -> dict[Key, str]:
    """Put the values of environment variables into `node`; the texts that named them, by key.

    What is not in quotes is then read as if the value stood there: a number is a number.
    """
    found: dict[Key, str] = {}
    waiting: list[tuple[Key, yaml.Node | None]] = [((), node)]
    while waiting:
        key, one = waiting.pop()
        waiting += [((*key, step), value) for step, _, value in _below(one)]
        if not isinstance(one, yaml.ScalarNode) or "${" not in one.value:
            continue
        found[key] = one.value
        one.value = _VARIABLE.sub(lambda match: _variable(match, key, written), one.value)  # noqa: B023 - called at once
        if one.style is None:
            one.tag = loader.resolve(yaml.ScalarNode, one.value, (True, False))
    return found


def _variable(match: re.Match[str], key: Key, written: Written) -> str:
    whole, name = match[0], match[2]
    if match[1]:
        return whole[1:]
    if not _VARIABLE_NAME.fullmatch(name):
        remedy = f"{name!r} is no name of an environment variable; for the text itself write $$"
        raise written.refused(key, whole, remedy)
    if not (value := os.environ.get(name)):
        remedy = f"the environment variable {name} is not set, or empty; set it"
        raise written.refused(key, whole, remedy)
    return value


def _below(node: yaml.Node | None) -> list[tuple[str, yaml.Node, yaml.Node]]:
    """What stands in a mapping or a list: step, where its line is, value."""
    if isinstance(node, yaml.MappingNode):
        return [(str(key.value), key, value) for key, value in node.value]
    if isinstance(node, yaml.SequenceNode):
        return [(str(index), item, item) for index, item in enumerate(node.value)]
    return []


def _lines(node: yaml.Node | None, at: Key) -> dict[Key, int]:
    found = {}
    for step, mark, value in _below(node) if len(at) < 4 else ():
        found[*at, step] = mark.start_mark.line + 1
        found |= _lines(value, (*at, step))
    return found
