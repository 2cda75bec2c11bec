"""What all screens share: the agent, its history, pictures, users, and how a template is filled."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from agent.child import AgentEnd
from agent.services.page.access import NOBODY, Access, Visitor
from agent.services.page.board import Board
from agent.services.page.doctor import Doctor
from agent.services.page.history import History
from agent.services.page.jobs import Jobs
from agent.services.page.labels import Labels
from agent.services.page.looks import Looks
from agent.services.page.now import Now
from agent.services.page.pictures import Pictures
from agent.services.page.screens import Screen, screens
from agent.services.page.texts import Texts, local_day, local_time, percent, score

_FOLDER: Final = Path(__file__).parent
STATIC: Final = _FOLDER / "static"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Handed to every screen; `agent`'s setup has the settings."""

    agent: AgentEnd
    history: History
    pictures: Pictures
    access: Access
    labels: Labels
    doctor: Doctor
    jobs: Jobs
    looks: Looks
    now: Now
    board: Board
    texts: Texts
    templates: Environment

    def visitor(self, request: Request) -> Visitor:
        """Who asks."""
        found: Visitor = getattr(request.state, "visitor", NOBODY)
        return found

    def note(self, request: Request, what: str, why: str = "") -> None:
        """Keep who has done what, and why."""
        self.access.note(self.visitor(request).name, what, why)

    def shown(
        self, template: str, request: Request, values: Mapping[str, object], *, status: int = 200
    ) -> HTMLResponse:
        """A template with its values, and what all of them know."""
        html = self.templates.get_template(template).render(
            visitor=self.visitor(request), path=request.url.path, **values
        )
        return HTMLResponse(html, status_code=status)


def templates(texts: Texts, clock: Callable[[], float] = time.time) -> Environment:
    """The templates of all screens: everything is escaped, and a word that is missing an error."""
    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FileSystemLoader(_FOLDER / "templates"),
    )
    menu: tuple[Screen, ...] = screens()
    made.globals |= {
        "asset": asset,
        "say": texts.say,
        "count": texts.count,
        "remedy": texts.remedy,
        "language": texts.language,
        "menu": menu,
        "clock": clock,
        "zip": zip,
    }
    made.filters |= {
        "addressed": urlencode,
        "day": local_day,
        "percent": percent,
        "score": score,
        "time": local_time,
    }
    return made


@cache
def asset(name: str) -> str:
    """The address of one of our files, which changes with it."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()
    return f"/static/{name}?v={digest[:12]}"


Values = dict[str, Any]
