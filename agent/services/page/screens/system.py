"""The system: what doctor says, the configuration, users, who did what, and the support archive."""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from agent.services.page.access import Role
from agent.services.page.figures import DAY_NS, changes
from agent.services.page.page import Page
from agent.services.page.screens import Action, Form, Fragment, Problem, Screen
from agent.support import archive, shown_configuration

_LOG_DAYS: Final = 90
_LINE: Final = re.compile(r", line (\d+)\)?$")


def show(page: Page, request: Request) -> Mapping[str, object]:
    """All but what doctor says, which is asked for by a button."""
    is_admin = page.visitor(request).may(Role.ADMIN)
    return {
        "status": page.now.status,
        **configuration(page),
        "users": page.access.users() if is_admin else [],
        "roles": list(Role),
        "is_admin": is_admin,
        "log": log(page),
    }


def configuration(page: Page, wrong: int | None = None) -> Mapping[str, object]:
    """The file of the configuration as it is now; `wrong` is a line with an error."""
    file = page.agent.setup["config_file"]
    try:
        lines = [] if file is None else shown_configuration(Path(file))
        is_newer = file is not None and Path(file).stat().st_mtime > page.agent.setup["started"]
    except OSError as error:
        lines, is_newer = [f"# {error.strerror}"], False
    return {"lines": lines, "file": file, "is_newer": is_newer, "wrong": wrong}


def log(page: Page) -> list[tuple[int, str, str, str]]:
    """Who did what, when and why: on the page and to the agent, the newest first."""
    since_ns = time.time_ns() - _LOG_DAYS * DAY_NS
    of_agent = [
        (one.changed_ns, one.who, f"{one.kind}: {one.old[:12]} → {one.new[:12]}", one.why)
        for one in changes(page.agent, since_ns)
    ]
    return sorted([*of_agent, *page.access.log()], reverse=True)[:200]


def doctor(page: Page, request: Request, _form: Form) -> Fragment:
    """Have the machine examined; the answer asks again until that is done."""
    if page.agent.setup["config_file"] is None:
        raise Problem("system.no_file")
    page.doctor.begin()
    page.note(request, "doctor")
    return Fragment(template="system_doctor.html.j2", values={"is_running": True, "findings": []})


def found(page: Page, _request: Request, _form: Form) -> Fragment:
    """What doctor says, once it says it."""
    if page.doctor.is_running:
        values: Mapping[str, object] = {"is_running": True, "findings": []}
        return Fragment(template="system_doctor.html.j2", values=values)
    findings = page.doctor.findings or []
    wrong = next(
        (
            int(line[1])
            for each in findings
            if each["check"] == "configuration" and (line := _LINE.search(each["message"]))
        ),
        None,
    )
    values = {"is_running": False, "findings": findings, **configuration(page, wrong)}
    return Fragment(template="system_doctor.html.j2", values=values)


def add_user(page: Page, request: Request, form: Form) -> Response:
    """Add a user, or give one another password and role."""
    role = Role.named(form.get("role", ""))
    if role is None:
        raise Problem("problem.refused")
    try:
        page.access.add_user(form.get("name", "").strip(), form.get("password", ""), role)
    except ValueError as error:
        raise Problem("system.user_refused", why=str(error)) from None
    page.note(request, "add user", f"{form['name'].strip()}, {role.name.lower()}")
    return Response(headers={"HX-Redirect": "/system"})


def remove_user(page: Page, request: Request, form: Form) -> Response:
    """Remove a user; nobody removes themselves."""
    name = form.get("name", "")
    if name == page.visitor(request).name:
        raise Problem("system.not_yourself")
    if page.access.remove_user(name):
        page.note(request, "remove user", name)
    return Response(headers={"HX-Redirect": "/system"})


def packed(page: Page, request: Request, _form: Form) -> Response:
    """The support archive."""
    page.note(request, "support archive")
    file = page.agent.setup["config_file"]
    told, _ = page.agent.ask("drift")
    days = page.history.query(
        "SELECT hour / 24 AS day, camera, state, sum(parts) AS parts FROM hours"
        " GROUP BY 1, 2, 3 ORDER BY 1 DESC LIMIT 5000"
    )
    files = {
        "status.json": page.now.status,
        "doctor.json": page.doctor.findings,
        "drift.json": told,
        "log.json": log(page),
        "days.json": [dict(row) for row in days],
    }
    name = f"support-{time.strftime('%Y-%m-%d')}.zip"
    return Response(
        archive(None if file is None else Path(file), files),
        media_type="application/zip",
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )


SCREEN = Screen(
    name="system",
    role=Role.ENGINEER,
    order=80,
    show=show,
    actions={
        "doctor": Action(role=Role.ENGINEER, do=doctor),
        "add-user": Action(role=Role.ADMIN, do=add_user),
        "remove-user": Action(role=Role.ADMIN, do=remove_user),
    },
    fragments={
        "archive": Action(role=Role.ADMIN, do=packed),
        "found": Action(role=Role.ENGINEER, do=found),
    },
)
