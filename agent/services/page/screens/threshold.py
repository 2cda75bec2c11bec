"""The threshold: what another one would change of the last days, and setting it."""

import secrets
import time
from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from agent.part import State
from agent.services.page.access import Role
from agent.services.page.figures import DAY_NS, flips, number
from agent.services.page.page import Page
from agent.services.page.screens import Action, Form, Problem, Screen
from calibration.bound import upper_bound

_DAYS: Final = 7


def show(page: Page, request: Request) -> Mapping[str, object]:
    """The threshold in force, or one that is tried, beside what it would change."""
    told, _ = page.agent.ask("drift")
    assert isinstance(told, dict)
    tried = number(request.query_params.get("threshold", ""))
    since_ns = time.time_ns() - _DAYS * DAY_NS
    chosen = told["threshold"] if tried is None else tried
    groups = [
        (state, flips(page.history, tried, since_ns, to=state))
        for state in (State.OK, State.NG)
        if tried is not None
    ]
    rows = [row for _, group in groups for row in group.rows]
    return {
        "told": told,
        "tried": tried,
        "chosen": chosen,
        "days": _DAYS,
        "promise": promise(told["calibration"], chosen),
        "groups": groups,
        "pictured": {row.id for row in rows if page.pictures.has(row)},
    }


def promise(calibration: Mapping[str, Any] | None, threshold: float) -> Mapping[str, Any] | None:
    """What the calibration's parts say of a threshold."""
    if calibration is None:
        return None
    good, defective = calibration["good_scores"], calibration["defective_scores"]
    above = sum(score > threshold for score in good)
    return {
        "good": len(good),
        "above": above,
        "at_most": upper_bound(above, len(good), confidence=calibration["confidence"]),
        "confidence": calibration["confidence"],
        "is_proved": calibration["is_proved"],
        "defective": len(defective),
        "found": sum(score > threshold for score in defective),
        "calibrated": calibration["threshold"],
    }


def set_it(page: Page, request: Request, form: Form) -> Response:
    """Use another threshold from the next part on, or the calibrated one again."""
    is_back = form.get("back") == "yes"
    value, why = number(form.get("threshold", "")), form.get("why", "").strip()[:500]
    if value is None and not is_back:
        raise Problem("threshold.no_number")
    if not why:
        raise Problem("problem.no_reason")
    page.agent.ask(
        "set_threshold",
        value=None if is_back else value,
        by=page.visitor(request).name,
        nonce=secrets.token_hex(8),
        why=why,
        force=form.get("force") == "yes",
    )
    page.note(request, "threshold", why)
    return Response(headers={"HX-Redirect": "/threshold"})


SCREEN = Screen(
    name="threshold",
    role=Role.ENGINEER,
    order=40,
    show=show,
    actions={"set": Action(role=Role.ENGINEER, do=set_it)},
)
