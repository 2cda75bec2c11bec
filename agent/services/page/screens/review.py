"""The review: people say which parts are good, part by part or many at once, by keyboard or finger.

Queues: `ng`, `doubtful`, and `audit`, a random sample of all parts, which is judged without its
verdict in sight. Labels of the audit alone say how often good parts are rejected.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import PlainTextResponse

from agent.child import RefusedError
from agent.part import State
from agent.record.annotations import parted_label
from agent.services.page.access import Role
from agent.services.page.history import QUEUES, Filters
from agent.services.page.labels import LABELS, WITHDRAWN
from agent.services.page.page import Page
from agent.services.page.screens import Action, Answered, Form, Fragment, Problem, Screen

SHOWN: Final = 50
MOST: Final = 500
"""Parts that may be labelled at once."""
_PART: Final = re.compile(r"([0-9a-f]{12})/(\d{1,18})")
_SAID: Final = re.compile(r"([0-9a-f]{12})/(\d{1,18})=([a-z]{1,10})")
_TEXT_MAX: Final = 256
_KIND_MAX: Final = 40


def show(page: Page, request: Request) -> Mapping[str, object]:
    """A list of parts to be judged."""
    filters = filters_of(request.query_params)
    page.history.flush()
    rows = page.history.parts(filters, SHOWN + 1)
    asked = {name: value for name, value in request.query_params.items() if name != "before"}
    more = urlencode(asked | {"before": str(rows[SHOWN - 1].n)}) if len(rows) > SHOWN else ""
    rows = rows[:SHOWN]
    return {
        "rows": rows,
        "pictured": {row.id for row in rows if page.pictures.has(row)},
        "is_blind": is_blind(filters.queue, filters.label),
        "filters": filters,
        "asked": asked,
        "is_filtered": bool(asked.keys() - {"queue", "label"}),
        "more": more,
        "waiting": page.history.waiting(),
        "queues": [*QUEUES, ""],
        "labels": LABELS,
        "kinds": page.history.kinds(),
        "states": [state.value for state in State],
        "cameras": page.history.cameras(),
        "may_label": page.visitor(request).may(Role.OPERATOR),
    }


def filters_of(asked: Mapping[str, str]) -> Filters:
    """What an address asks for; what makes no sense is left out."""
    text = {
        name: asked.get(name, "").strip()[:_TEXT_MAX] for name in ("camera", "state", "part_id")
    }
    is_search = any(text.values())
    queue = asked.get("queue", "" if is_search else "ng")
    return Filters(
        queue=queue if queue in QUEUES else "",
        label=asked.get("label", "open" if queue in QUEUES else ""),
        **text,
        score_from=_number(asked.get("score_from", "")),
        score_to=_number(asked.get("score_to", "")),
        from_ns=_moment_ns(asked.get("from", "")),
        to_ns=_moment_ns(asked.get("to", "")),
        before=_count(asked.get("before", "")),
    )


def is_blind(queue: str, label: str) -> bool:
    """Whether the verdict is hidden: who knows it does not judge freely."""
    return queue == "audit" and label == "open"


def part(page: Page, _request: Request, form: Form) -> Answered:
    """One part, large, beside the good part that is most like it."""
    found = _PART.fullmatch(form.get("id", ""))
    row = page.history.part(found[1], int(found[2])) if found else None
    if row is None:
        raise Problem("problem.gone", status=404)
    nearest, alike = page.looks.compared(row)
    return Fragment(
        template="review_part.html.j2",
        values={
            "row": row,
            "has_picture": page.pictures.has(row),
            "is_blind": form.get("blind") == "1" and row.label is None,
            "said": [
                {**one, "word": parted_label(one["label"])}
                for one in page.history.labels(row.epoch, row.sequence)
            ],
            "nearest": nearest,
            "alike": alike,
        },
    )


def label(page: Page, request: Request, form: Form) -> Answered:
    """Keep what somebody says of parts: `say` is `EPOCH/SEQUENCE=LABEL …`."""
    said = _SAID.findall(form.get("say", ""))
    queue = form.get("queue", "")
    if not 0 < len(said) <= MOST or any(word not in {*LABELS, WITHDRAWN} for *_, word in said):
        raise Problem("review.nothing")
    visitor, gone, why = page.visitor(request), 0, ""
    kind = " ".join(form.get("kind", "").split())[:_KIND_MAX]
    for epoch, sequence, word in said:
        try:
            page.labels.say(
                epoch,
                int(sequence),
                word,
                by=visitor,
                queue=queue if queue in QUEUES else "search",
                kind=kind,
            )
        except RefusedError as error:
            gone, why = gone + 1, str(error)
    page.labels.take()
    rows = [page.history.part(epoch, int(sequence)) for epoch, sequence, _ in said]
    return Fragment(
        template="review_said.html.j2",
        values={
            "rows": [row for row in rows if row is not None],
            "word": said[0][2],
            "done": len(said) - gone,
            "gone": gone,
            "why": why,
            "waiting": page.history.waiting(),
        },
    )


def count(page: Page, _request: Request, _form: Form) -> Answered:
    """How many parts the page knows; for who waits for them."""
    page.history.flush()
    (row,) = page.history.query("SELECT count(*) AS parts FROM parts")
    return PlainTextResponse(str(row["parts"]))


def _number(text: str) -> float | None:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        return None
    return value if abs(value) < 1e300 else None


def _count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def _moment_ns(text: str) -> int | None:
    """A local time, as a browser's field gives it."""
    try:
        return round(datetime.fromisoformat(text).astimezone().timestamp() * 1e9)
    except (ValueError, OverflowError, OSError):
        return None


SCREEN = Screen(
    name="review",
    role=Role.VIEWER,
    order=20,
    show=show,
    actions={"label": Action(role=Role.OPERATOR, do=label)},
    fragments={
        "part": Action(role=Role.VIEWER, do=part),
        "count": Action(role=Role.VIEWER, do=count),
    },
)
