"""Safe mode: the configuration does not load, so the page shows why, and nothing else runs.

The page's own keys are read from what can be read of the file. When the file is mended the agent
goes on by itself.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from agent.services.heartbeat import notify
from agent.services.page.access import USERS, Access, Role
from agent.services.page.guard import Guard
from agent.services.page.server import Server
from agent.services.page.service import listen
from agent.services.page.settings import PageSettings
from agent.services.page.site import STATIC, templates
from agent.services.page.texts import Texts
from agent.settings_file import read_block
from engine.errors import AtacError, ConfigurationError

T = TypeVar("T")
_LOG: Final = logging.getLogger("atac_agent.page")
_LOOK_S: Final = 0.5
_PATHS: Final = ("folder", "dataset", "certificate_file", "key_file")


def loaded_or_shown(path: Path, load: Callable[[Path], T], stop: threading.Event) -> T:
    """What `load` reads; while it cannot, the page of the configuration in `path` shows why.

    Args:
        path: The configuration.
        load: Reads it.
        stop: Ends the wait.

    Raises:
        ConfigurationError: It cannot be read, and it names no page, or `stop` was set.
    """
    try:
        return load(path)
    except ConfigurationError as error:
        if (settings := _page(path)) is None:
            raise
        first = error
    _LOG.error("%s", first)
    _LOG.error(
        "nothing is inspected; http://%s shows this error until it is mended", settings.listen
    )
    shown = [str(first)]
    with _served(settings, _ledger(path), lambda: shown[0]):
        notify(f"READY=1\nSTATUS=safe mode: {first}")
        seen = _looked_at(path)
        while not stop.wait(_LOOK_S):
            notify("WATCHDOG=1")
            if (now := _looked_at(path)) == seen:
                continue
            seen = now
            try:
                found = load(path)
            except AtacError as error:
                shown[0] = str(error)
                _LOG.error("%s", error)
            else:
                _LOG.warning("the configuration is mended; the agent starts")
                return found
    raise first


def _looked_at(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _page(path: Path) -> PageSettings | None:
    """The page that a file names, as far as it can be read; `None`: it names none."""
    has_page, data = read_block(path, "page")
    if not has_page:
        return None
    try:
        settings = TypeAdapter(PageSettings).validate_python(data or {})
    except ValidationError:
        return PageSettings()
    changes = {name: path.parent / place for name in _PATHS if (place := getattr(settings, name))}
    return TypeAdapter(PageSettings).validate_python({**(data or {}), **changes})


def _ledger(path: Path) -> Path:
    _, data = read_block(path, "ledger")
    named = data.get("path") if isinstance(data, dict) else None
    return path.parent / (named if isinstance(named, str) else "ledger.sqlite")


@contextmanager
def _served(settings: PageSettings, ledger: Path, text: Callable[[], str]) -> Iterator[None]:
    """The page at its address, if there it can be; the error is in the log all the same."""
    try:
        listening = listen(*settings.address)
    except OSError as error:
        _LOG.error("%s: cannot listen: %s", settings.listen, error)
        yield
        return
    with (
        listening,
        Access(settings.place(ledger) / USERS, idle_s=settings.idle_minutes * 60) as access,
    ):
        server = Server(_application(access, text), settings.certificate_file, settings.key_file)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listening]}, name="atac-page-safe", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join(5.0)


def _application(access: Access, text: Callable[[], str]) -> Starlette:
    texts = Texts()
    template = templates(texts).get_template("safe.html.j2")

    def show(request: Request) -> Response:
        if not request.state.visitor.may(Role.VIEWER):
            return HTMLResponse(template.render(error=texts.say("safe.not_here")), status_code=403)
        return HTMLResponse(template.render(error=text()), status_code=503)

    return Starlette(
        routes=[Mount("/static", StaticFiles(directory=STATIC)), Route("/{path:path}", show)],
        middleware=[Middleware(Guard, access=access, quiet=())],
    )
