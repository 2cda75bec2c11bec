"""Golden samples: known parts before the real camera, and the protocols of it."""

import base64
from collections.abc import Mapping
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from agent.golden import gaps, protocols
from agent.services.page.access import Role
from agent.services.page.page import Page
from agent.services.page.screens import Action, Form, Fragment, Screen

_SHOWN = 50


def show(page: Page, request: Request) -> Mapping[str, object]:
    """What is going on, and what was kept."""
    del request
    found = protocols(Path(page.agent.setup["checks"]), newest=_SHOWN)
    return {
        **status(page),
        "cameras": page.now.cameras(),
        "protocols": found[::-1],
        "wrong": [] if len(found) == _SHOWN else gaps(found),
    }


def status(page: Page) -> Mapping[str, object]:
    """How far a check is."""
    told, _ = page.agent.ask("check_status")
    return {"check": told}


def begin(page: Page, request: Request, form: Form) -> Response:
    """The next parts of a camera are the samples."""
    why, camera = form.get("why", "").strip()[:500], form.get("camera", "")
    page.agent.ask("check", camera=camera, by=page.visitor(request).name, why=why)
    page.note(request, "golden samples", why)
    return Response(headers={"HX-Redirect": "/golden"})


def cancel(page: Page, request: Request, _form: Form) -> Response:
    """End it; nothing is kept."""
    page.agent.ask("check_cancel")
    page.note(request, "golden samples cancelled")
    return Response(headers={"HX-Redirect": "/golden"})


def far(page: Page, _request: Request, form: Form) -> Fragment | Response:
    """How far it is now; the whole screen once it is over."""
    told = status(page)
    check = told["check"]
    assert isinstance(check, dict)
    if not check["running"] and form.get("was") == "yes":
        return Response(headers={"HX-Redirect": "/golden"})
    return Fragment(template="golden_status.html.j2", values=told)


def picture(page: Page, _request: Request, form: Form) -> Response:
    """One sample's picture: of the protocol `n` from the newest, and its place there."""
    found = protocols(Path(page.agent.setup["checks"]), newest=_SHOWN)[::-1]
    try:
        sample = found[int(form["n"])].protocol.samples[int(form["sample"])]
    except (KeyError, ValueError, IndexError):
        raise HTTPException(404) from None
    return Response(base64.b64decode(sample.picture), media_type="image/jpeg")


SCREEN = Screen(
    name="golden",
    role=Role.OPERATOR,
    order=30,
    show=show,
    actions={
        "begin": Action(role=Role.OPERATOR, do=begin),
        "cancel": Action(role=Role.OPERATOR, do=cancel),
    },
    fragments={
        "status": Action(role=Role.OPERATOR, do=far),
        "picture": Action(role=Role.OPERATOR, do=picture),
    },
)
