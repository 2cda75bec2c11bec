"""The screens of the page. One screen is one module here and one template.

    screens/NAME.py          SCREEN = Screen(name="NAME", role=Role.ENGINEER, order=30, show=show)
    templates/NAME.html.j2   {% extends "base.html.j2" %}
    texts/en.toml            [NAME] with at least `title`; all words of the screen

Nothing else names a screen: its address is `/NAME`, and it is in the menu of those who may see it.
`show(page, request)` gives what the template wants. It runs in a thread and may ask `page.history`
(only what an index answers), `page.agent.ask` and so on. `actions` are what its forms and buttons
post to `/NAME/ACTION`; each has its own role, and gives a `Fragment` for the browser to swap in, or
a `Response`. Forms come as a mapping of text. `fragments` are the same for GET. Raise `Problem`
with the key of a text for what a person should read. What is changed goes through
`page.agent.ask(...)`, and `page.note(...)` says who did it.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from agent.services.page.access import Role

Form = Mapping[str, str]


class Problem(Exception):  # noqa: N818 - something for a person to read
    """What a person should read: the `key` of its text, the `values` in it, and the status."""

    def __init__(self, key: str, *, status: int = 400, **values: object) -> None:
        self.key = key
        self.values = values
        self.status = status
        super().__init__(key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """A piece of HTML: a template and its values."""

    template: str
    values: Mapping[str, object] = field(default_factory=dict)


Shown = Mapping[str, object]
Answered = Fragment | Response


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Something that a `role` may do."""

    role: Role
    do: Callable[[Any, Request, Form], Answered]


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """One screen; see above."""

    name: str
    role: Role
    order: int
    show: Callable[[Any, Request], Shown]
    actions: Mapping[str, Action] = field(default_factory=dict)
    fragments: Mapping[str, Action] = field(default_factory=dict)


@cache
def screens() -> tuple[Screen, ...]:
    """All screens, as they are in the menu."""
    modules = (
        importlib.import_module(f"{__name__}.{each.name}")
        for each in pkgutil.iter_modules(__path__)
    )
    found: list[Any] = [getattr(module, "SCREEN", None) for module in modules]
    return tuple(sorted((one for one in found if one is not None), key=lambda one: one.order))
