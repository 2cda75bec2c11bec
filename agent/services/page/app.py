"""The application: addresses to screens, pictures, live events and logins."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import anyio.to_thread
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from agent.services.page import site
from agent.services.page.access import Role
from agent.services.page.page import Page
from agent.services.page.pictures import KINDS

_THREADS: Final = 4
_PICTURES: Final = {"cache-control": "private, max-age=604800, immutable"}
_NAMES: Final = ("kind", "epoch", "sequence")
_EPOCH: Final = re.compile("[0-9a-f]{12}")
_QUIET: Final = ("/events", "/picture/", "/version")


def application(page: Page) -> Starlette:
    """The whole page, behind its guard."""
    routes = [
        Route("/events", _events(page)),
        Route("/picture/{kind:str}/{epoch:str}/{sequence:int}.jpg", _picture(page)),
    ]
    return site.application(page, routes=routes, quiet=_QUIET, lifespan=_lifespan(page))


def _lifespan(page: Page) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def running(_app: Starlette) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
        board = asyncio.create_task(page.board.run())
        yield
        board.cancel()

    return running


# ---- pictures


def _picture(page: Page) -> Callable[[Request], Any]:
    def made(kind: str, epoch: str, sequence: int) -> bytes | None:
        page.history.flush()
        row = page.history.part(epoch, sequence)
        return None if row is None else page.pictures.picture(kind, row)

    async def picture(request: Request) -> Response:
        if (refusal := site.refused(page, request, Role.VIEWER)) is not None:
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
        if (refusal := site.refused(page, request, Role.VIEWER)) is not None:
            return refusal
        return StreamingResponse(page.board.messages(), media_type="text/event-stream")

    return events
