"""The line: what happens now."""

import secrets
from collections.abc import Mapping

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from agent.services.page.access import Role
from agent.services.page.page import Page
from agent.services.page.screens import Action, Form, Screen


def show(page: Page, request: Request) -> Mapping[str, object]:
    """The line as it is; what follows comes by events."""
    setup = page.agent.setup
    return {
        "panel": page.board.panel(),
        "rows": {row: Markup("").join(tiles.values()) for row, tiles in page.board.rows().items()},
        "cameras": page.now.cameras(),
        "products": setup["products"],
        "product": (page.now.status or {}).get("product"),
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


SCREEN = Screen(
    name="line",
    role=Role.VIEWER,
    order=10,
    show=show,
    actions={"product": Action(role=Role.OPERATOR, do=product)},
)
