"""The application: addresses to screens, pictures, live events and logins."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final
from urllib.parse import parse_qsl

import anyio.to_thread
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from agent.child import RefusedError
from agent.services.page.access import COOKIE, Refused, Role
from agent.services.page.guard import Guard
from agent.services.page.page import STATIC, Page
from agent.services.page.pictures import KINDS
from agent.services.page.screens import Action, Form, Fragment, Problem, Screen, screens

HOME: Final = "/line"
_THREADS: Final = 4
_PICTURES: Final = {"cache-control": "private, max-age=604800, immutable"}
_NAMES: Final = ("kind", "epoch", "sequence")
_EPOCH: Final = re.compile("[0-9a-f]{12}")
_QUIET: Final = ("/events", "/picture/", "/static/", "/version")


def application(page: Page) -> Starlette:
    """The whole page, behind its guard."""
    routes = [
        Route("/", lambda _request: RedirectResponse(HOME)),
        Route("/login", _login(page), methods=["GET", "POST"]),
        Route("/logout", _logout(page), methods=["POST"]),
        Route("/events", _events(page)),
        Route("/picture/{kind:str}/{epoch:str}/{sequence:int}.jpg", _picture(page)),
        Mount("/static", _Static(directory=STATIC)),
    ]
    for screen in screens():
        routes.append(Route(f"/{screen.name}", _screen(page, screen)))
        routes += [
            Route(f"/{screen.name}/{name}", _action(page, action, method), methods=[method])
            for method, actions in (("POST", screen.actions), ("GET", screen.fragments))
            for name, action in actions.items()
        ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, access=page.access, quiet=_QUIET)],
        exception_handlers={HTTPException: _http_error(page), Exception: _error(page)},
        lifespan=_lifespan(page),
    )


def _lifespan(page: Page) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def running(_app: Starlette) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
        board = asyncio.create_task(page.board.run())
        yield
        board.cancel()

    return running


class _Static(StaticFiles):
    """Files of ours, at addresses that change with them: a browser need not ask again."""

    def file_response(self, *arguments: Any, **named: Any) -> Response:
        response = super().file_response(*arguments, **named)
        response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


# ---- screens


def _screen(page: Page, screen: Screen) -> Callable[[Request], Any]:
    def show(request: Request) -> Response:
        if (refusal := _refused(page, request, screen.role)) is not None:
            return refusal
        try:
            values = screen.show(page, request)
        except Problem as problem:
            return _problem(page, request, problem)
        return page.shown(f"{screen.name}.html.j2", request, {"screen": screen, **values})

    return _in_thread(show)


def _action(page: Page, action: Action, method: str) -> Callable[[Request], Any]:
    async def act(request: Request) -> Response:
        form = await _form(request) if method == "POST" else dict(request.query_params)
        return await run_in_threadpool(_done, page, request, action, form)

    return act


def _done(page: Page, request: Request, action: Action, form: Form) -> Response:
    if (refusal := _refused(page, request, action.role)) is not None:
        return refusal
    try:
        answer = action.do(page, request, form)
    except Problem as problem:
        return _problem(page, request, problem)
    except RefusedError as error:
        return _problem(page, request, Problem("problem.agent", status=409, why=str(error)))
    if isinstance(answer, Fragment):
        return page.shown(answer.template, request, answer.values)
    return answer


def _refused(page: Page, request: Request, role: Role) -> Response | None:
    """What is answered to somebody who may not do this; `None` to all others."""
    visitor = page.visitor(request)
    if visitor.may(role):
        return None
    if visitor.full_role is not None and visitor.full_role >= role:
        return _problem(page, request, Problem("problem.idle", status=403))
    if not page.access.has_users():
        return _problem(page, request, Problem("problem.no_users", status=403))
    if visitor.name:
        values = {"role": page.texts.say(f"roles.{role.name.lower()}")}
        return _problem(page, request, Problem("problem.role", status=403, **values))
    if request.method == "GET" and "hx-request" not in request.headers:
        return RedirectResponse(f"/login?next={request.url.path}", status_code=303)
    return _problem(page, request, Problem("problem.log_in", status=401))


def _problem(page: Page, request: Request, problem: Problem) -> Response:
    text = page.texts.say(problem.key, **problem.values)
    is_piece = "hx-request" in request.headers
    template = "problem_piece.html.j2" if is_piece else "problem.html.j2"
    return page.shown(template, request, {"text": text, "screen": None}, status=problem.status)


def _http_error(page: Page) -> Any:
    def shown(request: Request, error: HTTPException) -> Response:
        key = "problem.not_found" if error.status_code == 404 else "problem.refused"
        return _problem(page, request, Problem(key, status=error.status_code))

    return shown


def _error(page: Page) -> Any:
    def shown(request: Request, _error: Exception) -> Response:
        return _problem(page, request, Problem("problem.failed", status=500))

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


def _login(page: Page) -> Callable[[Request], Any]:
    async def login(request: Request) -> Response:
        if request.method == "POST":
            return await run_in_threadpool(_log_in, page, request, await _form(request))
        values = {
            "screen": None,
            "next": _local_path(request.query_params.get("next", "")),
            "has_users": page.access.has_users(),
        }
        return page.shown("login.html.j2", request, values)

    return login


def _log_in(page: Page, request: Request, form: Form) -> Response:
    address = "" if request.client is None else request.client.host
    try:
        token = page.access.log_in(form.get("name", ""), form.get("password", ""), address)
    except Refused as refusal:
        status = 401 if str(refusal) == "login.wrong" else 429
        return _problem(page, request, Problem(str(refusal), status=status))
    response = Response(headers={"HX-Redirect": _local_path(form.get("next", ""))})
    response.set_cookie(
        COOKIE, token, secure=True, httponly=True, samesite="strict", path="/", max_age=12 * 3600
    )
    return response


def _logout(page: Page) -> Callable[[Request], Any]:
    def log_out(request: Request) -> Response:
        page.access.log_out(request.cookies.get(COOKIE, ""))
        response = Response(headers={"HX-Redirect": HOME})
        response.delete_cookie(COOKIE, secure=True, httponly=True, samesite="strict", path="/")
        return response

    return _in_thread(log_out)


def _local_path(path: str) -> str:
    """A path of this page; anything else is the first screen."""
    known = {f"/{screen.name}" for screen in screens()}
    return path if path in known else HOME


# ---- pictures


def _picture(page: Page) -> Callable[[Request], Any]:
    def made(kind: str, epoch: str, sequence: int) -> bytes | None:
        page.history.flush()
        row = page.history.part(epoch, sequence)
        return None if row is None else page.pictures.picture(kind, row)

    async def picture(request: Request) -> Response:
        if (refusal := _refused(page, request, Role.VIEWER)) is not None:
            return refusal
        kind, epoch, sequence = (request.path_params[name] for name in _NAMES)
        if kind not in KINDS or not _EPOCH.fullmatch(epoch) or sequence >= 1 << 63:
            raise HTTPException(404)
        data = page.pictures.known(kind, epoch, sequence)
        if data is None:
            data = await run_in_threadpool(made, kind, epoch, sequence)
        if data is None:
            raise HTTPException(404)
        return Response(data, media_type="image/jpeg", headers=_PICTURES)

    return picture


# ---- live events


def _events(page: Page) -> Callable[[Request], Any]:
    async def events(request: Request) -> Response:
        if (refusal := _refused(page, request, Role.VIEWER)) is not None:
            return refusal
        return StreamingResponse(page.board.messages(), media_type="text/event-stream")

    return events
