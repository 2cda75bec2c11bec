"""A camera's features by a GenApi in Python: that of genicam, or pylon's, with capital names."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from agent.camera_child.wire import RefusedError

Value = bool | int | float | str
_CLOSE: Final = 0.01
"""How far from what is written a number may be read back, as a part of it."""

_CACHE: Final = "GENICAM_CACHE_V3_5"
"""What GenApi calls the folder for what it has read of cameras; without it, it makes one of its own
in the user's home."""


def use_cache() -> None:
    """Have GenApi, which is imported later, keep its files in our folder of the user's cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = folder / "atac-agent" / "genicam"
    with suppress(OSError):  # without one it is slower
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault(_CACHE, str(folder))


class Nodes:
    """The node map `nodes` of a camera; `api` has its classes, `genicam.genapi` or pylon's own."""

    def __init__(self, nodes: Any, api: Any, *, has_capitals: bool) -> None:
        self._nodes = nodes
        self._api = api
        self._has_capitals = has_capitals

    def read(self, name: str) -> Value | None:
        """The value of a feature; `None` where the camera has none of this name."""
        node = self._node(name)
        with suppress(self._api.GenericException, AttributeError):
            value = self._of(node, "value")
            return value if isinstance(value, bool | int | float) else str(value)
        return None

    def number(self, name: str) -> float | None:
        """The value of a feature that is a number."""
        value = self.read(name)
        return float(value) if isinstance(value, int | float) else None

    def write(self, name: str, value: Value, before: dict[str, Value]) -> None:
        """Write a feature, read it back and compare; `before` gets what it was.

        Raises `RefusedError` with what may be written.
        """
        api, key, node = self._api, f"features.{name}", self._node(name)
        if node is None:
            raise RefusedError(key, value, "the camera has no such feature")
        if isinstance(node, api.ICommand):
            if value is not True:
                raise RefusedError(key, value, "is a command; write true to have it executed")
            self.execute(name)
            return
        if (allowed := self._allowed(node, value)) is not None:
            raise RefusedError(key, value, allowed)
        if isinstance(node, api.IEnumeration) and isinstance(value, bool):
            value = "On" if value else "Off"  # as YAML reads these words
        if isinstance(node, api.IFloat):
            value = float(value)
        old = self.read(name)
        try:
            setattr(node, "Value" if self._has_capitals else "value", value)
        except api.GenericException as error:
            raise RefusedError(key, value, f"the camera refuses it: {first_line(error)}") from None
        found = self.read(name)
        if not _is_same(value, found):
            raise RefusedError(
                key, value, f"the camera has {found!r} after it was written; write a value it takes"
            )
        if old is not None and not _is_same(value, old):
            before[name] = old

    def execute(self, name: str) -> None:
        """Execute a command; raises the api's `GenericException`."""
        node = self._node(name)
        (node.Execute if self._has_capitals else node.execute)()

    def check_mode(self, named: set[str]) -> None:
        """Refuse a camera that waits for triggers while the configuration does not say so."""
        if self.read("TriggerMode") == "On" and "TriggerMode" not in named:
            raise RefusedError(
                "features.TriggerMode",
                None,
                "the camera waits for triggers, and the configuration does not say so; write "
                "TriggerMode: On or TriggerMode: Off",
            )

    def _node(self, name: str) -> Any:
        api = self._api
        with suppress(api.GenericException):
            if self._has_capitals:
                node = self._nodes.GetNode(name)
                return node if node is not None and api.IsAvailable(node) else None
            node = self._nodes.get_node(name)
            if node.get_access_mode() not in {api.EAccessMode.NI, api.EAccessMode.NA}:
                return node
        return None

    def _of(self, node: Any, name: str) -> Any:
        return getattr(node, name.capitalize() if self._has_capitals else name)

    def _allowed(self, node: Any, value: Value) -> str | None:
        """What may be written instead of `value`; `None`: it may be written."""
        api = self._api
        if isinstance(node, api.IEnumeration):
            known = list(self._of(node, "symbolics"))
            wanted = ("On" if value else "Off") if isinstance(value, bool) else value
            return None if wanted in known else f"write {' or '.join(known)}"
        if isinstance(node, api.IBoolean):
            return None if isinstance(value, bool) else "write true or false"
        if isinstance(node, api.IFloat | api.IInteger):
            is_float = isinstance(node, api.IFloat)
            is_number = isinstance(value, int | float if is_float else int)
            low, high = self._of(node, "min"), self._of(node, "max")
            if is_number and not isinstance(value, bool) and low <= float(value) <= high:
                return None
            return f"write a {'' if is_float else 'whole '}number from {low:g} to {high:g}"
        return None if isinstance(value, str) else "write text"


def first_line(error: Exception) -> str:
    """What a GenApi says, without the places in its own sources."""
    return str(error).partition(" : ")[0].splitlines()[0] if str(error) else type(error).__name__


def _is_same(wanted: Value, found: Value | None) -> bool:
    if isinstance(wanted, float) and isinstance(found, int | float):
        return abs(wanted - found) <= _CLOSE * max(abs(wanted), 1e-9)
    return wanted == found
