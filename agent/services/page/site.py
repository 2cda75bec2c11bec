"""What all pages of ours share: users and their logins, screens, problems, and the door.

`Site` is the base of what a page hands to its screens; `application` makes the whole of it.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from agent.child import RefusedError
from agent.services.page.access import COOKIE, NOBODY, Access, Refused, Role, Visitor
from agent.services.page.guard import Guard
from agent.services.page.screens import Action, Form, Fragment, Problem, Screen
from agent.services.page.texts import Texts, local_day, local_time, percent, score

_FOLDER: Final = Path(__file__).parent
STATIC: Final = _FOLDER / "static"
_STATIC_PATH: Final = "/static"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Users, words and templates of a page, and its `screens`, the first of which is its home."""

    access: Access
    texts: Texts
    templates: Environment
    screens: tuple[Screen, ...]

    @property
    def home(self) -> str:
        """The address of the first screen."""
        return f"/{self.screens[0].name}"

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


def application(
    site: Site,
    *,
    routes: Sequence[BaseRoute] = (),
    quiet: Sequence[str] = (),
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] | None = None,
) -> Starlette:
    """The whole page, behind its guard.

    Args:
        site: Its users and screens.
        routes: What there is besides screens.
        quiet: The beginnings of paths that a browser asks for by itself.
        lifespan: What runs as long as it does.
    """
    found = [
        Route("/", lambda _request: RedirectResponse(site.home)),
        Route("/login", _login(site), methods=["GET", "POST"]),
        Route("/logout", _logout(site), methods=["POST"]),
        *routes,
        Mount(_STATIC_PATH, _Static(directory=STATIC)),
    ]
    for screen in site.screens:
        found.append(Route(f"/{screen.name}", _screen(site, screen)))
        found += [
            Route(f"/{screen.name}/{name}", _action(site, action, method), methods=[method])
            for method, actions in (("POST", screen.actions), ("GET", screen.fragments))
            for name, action in actions.items()
        ]
    return Starlette(
        routes=found,
        middleware=[Middleware(Guard, access=site.access, quiet=(_STATIC_PATH, *quiet))],
        exception_handlers={HTTPException: _http_error(site), Exception: _error(site)},
        lifespan=lifespan,
    )


class _Static(StaticFiles):
    """Files of ours, at addresses that change with them: a browser need not ask again."""

    def file_response(self, *arguments: Any, **named: Any) -> Response:
        response = super().file_response(*arguments, **named)
        response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


# ---- screens


def _screen(site: Site, screen: Screen) -> Callable[[Request], Any]:
    def show(request: Request) -> Response:
        if (refusal := refused(site, request, screen.role)) is not None:
            return refusal
        try:
            values = screen.show(site, request)
        except Problem as problem:
            return _problem(site, request, problem)
        return site.shown(f"{screen.name}.html.j2", request, {"screen": screen, **values})

    return _in_thread(show)


def _action(site: Site, action: Action, method: str) -> Callable[[Request], Any]:
    async def act(request: Request) -> Response:
        form = await _form(request) if method == "POST" else dict(request.query_params)
        return await run_in_threadpool(_done, site, request, action, form)

    return act


def _done(site: Site, request: Request, action: Action, form: Form) -> Response:
    if (refusal := refused(site, request, action.role)) is not None:
        return refusal
    try:
        answer = action.do(site, request, form)
    except Problem as problem:
        return _problem(site, request, problem)
    except RefusedError as error:
        return _problem(site, request, Problem("problem.agent", status=409, why=str(error)))
    if isinstance(answer, Fragment):
        return site.shown(answer.template, request, answer.values)
    return answer


def refused(site: Site, request: Request, role: Role) -> Response | None:
    """What is answered to somebody who may not do this; `None` to all others."""
    visitor = site.visitor(request)
    if visitor.may(role):
        return None
    if visitor.full_role is not None and visitor.full_role >= role:
        return _problem(site, request, Problem("problem.idle", status=403))
    if not site.access.has_users():
        return _problem(site, request, Problem("problem.no_users", status=403))
    if visitor.name:
        values = {"role": site.texts.say(f"roles.{role.name.lower()}")}
        return _problem(site, request, Problem("problem.role", status=403, **values))
    if request.method == "GET" and "hx-request" not in request.headers:
        return RedirectResponse(f"/login?next={request.url.path}", status_code=303)
    return _problem(site, request, Problem("problem.log_in", status=401))


def _problem(site: Site, request: Request, problem: Problem) -> Response:
    text = site.texts.say(problem.key, **problem.values)
    is_piece = "hx-request" in request.headers
    template = "problem_piece.html.j2" if is_piece else "problem.html.j2"
    return site.shown(template, request, {"text": text, "screen": None}, status=problem.status)


def _http_error(site: Site) -> Any:
    def shown(request: Request, error: HTTPException) -> Response:
        key = "problem.not_found" if error.status_code == 404 else "problem.refused"
        return _problem(site, request, Problem(key, status=error.status_code))

    return shown


def _error(site: Site) -> Any:
    def shown(request: Request, _error: Exception) -> Response:
        return _problem(site, request, Problem("problem.failed", status=500))

    return shown


async def _form(request: Request) -> Form:
    """A form's values, the last of each name; `GET` has those of its address."""
    body = (await request.body()).decode(errors="replace")
    try:
        return dict(parse_qsl(body, keep_blank_values=True, max_num_fields=2000))
    except ValueError:
        return {}


def _in_thread(function: Callable[[Request], Response]) -> Callable[[Request], Any]:
    async def called(request: Request) -> Response:
        return await run_in_threadpool(function, request)

    return called


# ---- logins


def _login(site: Site) -> Callable[[Request], Any]:
    async def login(request: Request) -> Response:
        if request.method == "POST":
            return await run_in_threadpool(_log_in, site, request, await _form(request))
        values = {
            "screen": None,
            "next": _local_path(site, request.query_params.get("next", "")),
            "has_users": site.access.has_users(),
        }
        return site.shown("login.html.j2", request, values)

    return login


def _log_in(site: Site, request: Request, form: Form) -> Response:
    address = "" if request.client is None else request.client.host
    try:
        token = site.access.log_in(form.get("name", ""), form.get("password", ""), address)
    except Refused as refusal:
        status = 401 if str(refusal) == "login.wrong" else 429
        return _problem(site, request, Problem(str(refusal), status=status))
    response = Response(headers={"HX-Redirect": _local_path(site, form.get("next", ""))})
    response.set_cookie(
        COOKIE, token, secure=True, httponly=True, samesite="strict", path="/", max_age=12 * 3600
    )
    return response


def _logout(site: Site) -> Callable[[Request], Any]:
    def log_out(request: Request) -> Response:
        site.access.log_out(request.cookies.get(COOKIE, ""))
        response = Response(headers={"HX-Redirect": site.home})
        response.delete_cookie(COOKIE, secure=True, httponly=True, samesite="strict", path="/")
        return response

    return _in_thread(log_out)


def _local_path(site: Site, path: str) -> str:
    """A path of this page; anything else is the first screen."""
    known = {f"/{screen.name}" for screen in site.screens}
    return path if path in known else site.home


# ---- templates


def templates(
    texts: Texts,
    screens: tuple[Screen, ...] = (),
    *folders: Path,
    clock: Callable[[], float] = time.time,
) -> Environment:
    """The templates of all screens: everything is escaped, and a word that is missing an error.

    Args:
        texts: All words.
        screens: What is in the menu.
        folders: Those with templates besides ours.
        clock: UTC in seconds.
    """
    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FileSystemLoader([*folders, _FOLDER / "templates"]),
    )
    made.globals |= {
        "asset": asset,
        "say": texts.say,
        "count": texts.count,
        "remedy": texts.remedy,
        "language": texts.language,
        "menu": screens,
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
