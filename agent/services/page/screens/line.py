"""The line: what happens now."""

import secrets
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from agent.part import State
from agent.services.page.access import Role
from agent.services.page.now import TILES
from agent.services.page.page import Page
from agent.services.page.screens import Action, Form, Screen


def show(page: Page, request: Request) -> Mapping[str, object]:
    """The line as it is; what follows comes by events."""
    setup = page.agent.setup
    return {
        **panel(page),
        "cameras": page.now.cameras(),
        "products": setup["products"],
        "product_from": setup["product_from"],
        "may_switch": page.visitor(request).may(Role.OPERATOR),
    }


def product(page: Page, request: Request, form: Form) -> Response:
    """Have the line make another product: parts that begin from now on."""
    why = form.get("why", "").strip()[:500]
    page.agent.ask(
        "switch",
        product=form.get("product", ""),
        by=page.visitor(request).name,
        why=why,
        nonce=secrets.token_hex(8),
    )
    page.note(request, "product", why)
    return Response(headers={"HX-Redirect": "/line"})


def panel(page: Page) -> Mapping[str, object]:
    """Everything but the live pictures and the strip of scores."""
    status = page.now.status or {"cameras": {}, "faults": [], "is_paused": False}
    cameras = status["cameras"].values()
    ended = page.now.counts()
    counts = {state.value: ended[state.value] for state in State}
    triggers = sum(camera["triggers"] for camera in cameras)
    began_ns, shift = page.now.shift()
    in_shift = sum(shift.values())
    tiles = page.now.newest(TILES)
    return {
        "last": tiles[0] if tiles else None,
        "counts": counts,
        "triggers": triggers,
        "in_work": triggers - sum(counts.values()),
        "shift_began_ns": began_ns,
        "shift": shift,
        "in_shift": in_shift,
        "shift_yield": shift[State.OK.value] / in_shift if in_shift else None,
        "tiles": [(seen, page.pictures.has_tile(seen.epoch, seen.sequence)) for seen in tiles],
        "rejected": page.now.rejected(),
        "faults": status["faults"],
        "is_paused": status["is_paused"],
        "has_status": page.now.status is not None,
        "product": status.get("product"),
        "several": len(status["cameras"]) > 1,
    }


SCREEN = Screen(
    name="line",
    role=Role.VIEWER,
    order=10,
    show=show,
    actions={"product": Action(role=Role.OPERATOR, do=product)},
)
