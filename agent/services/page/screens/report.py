"""The report of a shift, a day or a week, as a screen, a page to keep, and a table."""

import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from agent.golden import protocols
from agent.part import State
from agent.production import COLUMNS, ROWS, Report, as_csv, as_html, gather, moment_ns
from agent.record.evidence_files import local, safe
from agent.services.page.access import Role
from agent.services.page.figures import HistorySource
from agent.services.page.page import Page
from agent.services.page.screens import Action, Form, Problem, Screen


def show(page: Page, request: Request) -> Mapping[str, object]:
    """The report of the time that is asked for; without one that of this shift."""
    found = _report(page, dict(request.query_params))
    shift_ns, _ = page.now.shift()
    now = datetime.now().astimezone()
    day = timedelta(days=1)
    return {
        "report": found,
        "pictured": {
            (one.epoch, one.sequence)
            for one in found.worst
            if (row := page.history.part(one.epoch, one.sequence)) and page.pictures.has(row)
        },
        "states": list(State),
        "rows": ROWS,
        "columns": COLUMNS,
        "local": local,
        "from_text": f"{local(found.from_ns):%Y-%m-%d %H:%M}",
        "to_text": f"{local(found.to_ns):%Y-%m-%d %H:%M}",
        "spans": [
            ("shift", f"{local(shift_ns):%Y-%m-%d %H:%M}", ""),
            ("today", f"{now:%Y-%m-%d}", ""),
            ("yesterday", f"{now - day:%Y-%m-%d}", f"{now - day:%Y-%m-%d}"),
            ("week", f"{now - 6 * day:%Y-%m-%d}", ""),
        ],
    }


def _report(page: Page, form: Form, *, with_pictures: bool = False) -> Report:
    begin, end = form.get("from", "").strip(), form.get("to", "").strip()
    try:
        from_ns = moment_ns(begin) if begin else page.now.shift()[0]
        to_ns = moment_ns(end, is_end=True) if end else time.time_ns()
    except (ValueError, OverflowError):
        raise Problem("report.no_time") from None
    if to_ns <= from_ns:
        raise Problem("report.no_time")
    page.history.flush()

    def picture(epoch: str, sequence: int) -> bytes | None:
        row, kept = page.history.part(epoch, sequence), page.pictures.frame(epoch, sequence)
        return kept if kept or row is None else page.pictures.picture("large", row)

    return gather(
        HistorySource(page.history, page.agent, picture if with_pictures else None),
        protocols(Path(page.agent.setup["checks"]), newest=200),
        agent_id=page.agent.setup["agent_id"],
        from_ns=from_ns,
        to_ns=to_ns,
    )


def table(page: Page, _request: Request, form: Form) -> Response:
    """The counts by hour as a file."""
    found = _report(page, form)
    return _file(found, as_csv(found).encode(), "text/csv; charset=utf-8", "csv")


def kept(page: Page, _request: Request, form: Form) -> Response:
    """The whole report as a file that can be printed."""
    found = _report(page, form, with_pictures=True)
    return _file(found, as_html(found), "text/html; charset=utf-8", "html")


def _file(found: Report, data: bytes, media_type: str, end: str) -> Response:
    ascii_name = safe(found.agent_id).encode("ascii", errors="replace").decode().replace("?", "-")
    name = f"{ascii_name}_{local(found.from_ns):%Y-%m-%d}.{end}"
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(data, media_type=media_type, headers=headers)


SCREEN = Screen(
    name="report",
    role=Role.VIEWER,
    order=60,
    show=show,
    fragments={
        "table": Action(role=Role.VIEWER, do=table),
        "file": Action(role=Role.VIEWER, do=kept),
    },
)
