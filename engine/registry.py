"""Kinds: what there is of cameras, sinks, methods and so on is found, not listed.

A kind is one module of a package, such as `agent/cameras/folder.py`, and the module's name is its
`type`. It exports one settings class with `type: Literal["folder"]`, and `open`, whose arguments
are those that its package asks for. Nothing else names it. A module without such a class is no
kind. An installed package adds a kind by an entry point whose name is the type and whose value is
the module:

    [project.entry-points."atac_agent.cameras"]
    webcam = "my_package.webcam"

A module is imported when its type is asked for, so it imports no vendor library; its `open` does.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Final, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import GetCoreSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError, core_schema

from engine.errors import KindError

S = TypeVar("S")
_PREFIX: Final = "atac_agent"
_TYPE: Final = re.compile("[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[S]):
    """One kind: its `name` (the type), the class of its settings, and its module."""

    name: str
    settings: type[S]
    module: ModuleType

    @property
    def open(self) -> Callable[..., Any]:
        """Makes one of its settings, and of what its package gives besides."""
        opener: Callable[..., Any] = self.module.open
        return opener


class Kinds(Generic[S]):
    """The kinds of one `package`, whose settings classes derive from `settings`.

    `noun` names one of them in messages, such as "camera". Beside a type in an annotation it makes
    pydantic read the settings of any kind, told apart by `type`: `Annotated[AnyCamera, CAMERAS]`.
    """

    def __init__(self, package: str, settings: type[S], *, noun: str) -> None:
        self._package = package
        self._settings = settings
        self._noun = noun
        self._found: dict[str, Kind[S]] = {}

    @property
    def group(self) -> str:
        """The group of entry points by which installed packages add kinds."""
        return f"{_PREFIX}.{self._package.rpartition('.')[2]}"

    def find(self, name: str) -> Kind[S]:
        """The kind of this type; raises `KindError` when there is none or it cannot be used."""
        if (found := self._found.get(name)) is None:
            found = self._found[name] = self._own(name) or self._added(name)
        return found

    def of(self, settings: S) -> Kind[S]:
        """The kind that `settings` belong to."""
        return self.find(getattr(settings, "type"))  # noqa: B009 - no base class has it

    def names(self) -> tuple[str, ...]:
        """The types of all kinds, ours and those of installed packages; imports our modules."""
        path = importlib.import_module(self._package).__path__
        ours = [each.name for each in pkgutil.iter_modules(path) if self._own(each.name)]
        return tuple(sorted({*ours, *(entry.name for entry in _entries(self.group))}))

    def added(self) -> dict[str, str]:
        """What installed packages add, by type: `camera noise of atac-examples`.

        Raises `KindError` for the first kind that cannot be used.
        """
        return {
            self.find(entry.name).name: f"{self._noun} {entry.name} of {_packages([entry])}"
            for entry in _entries(self.group)
        }

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._validated, json_schema_input_schema=core_schema.any_schema()
        )

    def _validated(self, value: object) -> S:
        if isinstance(value, self._settings):
            return value
        if not isinstance(value, dict):
            raise PydanticKnownError("dict_type")
        if "type" not in value:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": "'type'"})
        if not isinstance(name := value["type"], str):
            raise PydanticKnownError("string_type")
        try:
            kind = self.find(name)
        except KindError as error:
            raise PydanticCustomError("kind", "{reason}", {"reason": str(error)}) from None
        # Through JSON, where strictness knows paths and lists but takes no "5" for a number.
        adapter: TypeAdapter[S] = TypeAdapter(kind.settings)
        return adapter.validate_json(json.dumps(value), strict=True)

    def _own(self, name: str) -> Kind[S] | None:
        if not _TYPE.fullmatch(name):
            return None
        path = f"{self._package}.{name}"
        if importlib.util.find_spec(path) is None:
            return None
        module = importlib.import_module(path)
        if not (classes := _settings_classes(module, name)):
            return None
        if others := _entries(self.group, name):
            raise KindError(f"the package {_packages(others)} adds {self._a(name)}, which is ours")
        return Kind(name=name, settings=classes[0], module=module)

    def _added(self, name: str) -> Kind[S]:
        entries = _entries(self.group, name)
        if not entries:
            known = self.names()
            raise KindError(f"write {' or '.join(known)}" if known else f"there is no {self._noun}")
        if len(entries) > 1:
            raise KindError(f"the packages {_packages(entries)} all add {self._a(name)}")
        blamed = f"the package {_packages(entries)} adds {self._a(name)} that cannot be used"
        try:
            module = entries[0].load()
        except Exception as error:
            raise KindError(f"{blamed}: {type(error).__name__}: {error}") from error
        classes = _settings_classes(module, name)
        if len(classes) != 1:
            wanted = f"one settings class with type: Literal[{name!r}]"
            raise KindError(f"{blamed}: {entries[0].value} should export {wanted}")
        if not issubclass(classes[0], self._settings):
            base = f"{self._settings.__module__}.{self._settings.__name__}"
            raise KindError(f"{blamed}: {classes[0].__name__} should derive from {base}")
        if not callable(getattr(module, "open", None)):
            raise KindError(f"{blamed}: {entries[0].value} should export open")
        return Kind(name=name, settings=classes[0], module=module)

    def _a(self, name: str) -> str:
        return f"a {self._noun} of type {name!r}"


def _settings_classes(module: ModuleType, name: str) -> list[type[Any]]:
    """The classes that `module` exports whose `type` is the literal `name`."""
    exported = [each for key, each in vars(module).items() if not key.startswith("_")]
    return [each for each in exported if isinstance(each, type) and _literal(each) == name]


def _literal(settings: type[Any]) -> str | None:
    if "type" not in getattr(settings, "__annotations__", {}):
        return None
    try:
        hint = get_type_hints(settings)["type"]
    except NameError:  # a class with annotations for the type checker alone
        return None
    values = get_args(hint)
    return values[0] if get_origin(hint) is Literal and len(values) == 1 else None


@cache
def _installed() -> tuple[importlib.metadata.EntryPoint, ...]:
    """The entry points of all our groups, found in one pass over what is installed."""
    ours: dict[tuple[str, ...], importlib.metadata.EntryPoint] = {}
    for distribution in importlib.metadata.distributions():
        for entry in distribution.entry_points:
            if entry.group.startswith(f"{_PREFIX}."):
                # One distribution may be found twice, by two entries of the path.
                ours[entry.group, entry.name, entry.value, distribution.name] = entry
    return tuple(ours.values())


def _entries(group: str, name: str | None = None) -> list[importlib.metadata.EntryPoint]:
    found = [entry for entry in _installed() if entry.group == group]
    return [entry for entry in found if name is None or entry.name == name]


def _packages(entries: list[importlib.metadata.EntryPoint]) -> str:
    names = {entry.dist.name if entry.dist else entry.value for entry in entries}
    return " and ".join(sorted(names))
