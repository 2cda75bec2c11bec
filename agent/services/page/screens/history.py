"""History: yield, rejects, drops and times by hour or day, scores, and drift."""

import time
from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request

from agent.part import State
from agent.production import HOUR_NS
from agent.record.evidence_files import local
from agent.services.page.access import Role
from agent.services.page.figures import Bar, HistorySource, p99_s, score_bars
from agent.services.page.page import Page
from agent.services.page.screens import Screen
from agent.services.page.texts import percent
from calibration.bound import good_parts_needed

_SPANS: Final = {"day": (24, 1), "week": (7 * 24, 6), "month": (30 * 24, 24)}
"""Hours in all, and hours of one bar."""


def show(page: Page, request: Request) -> Mapping[str, object]:
    """The last day, week or month, of all cameras or of one."""
    span = request.query_params.get("span", "day")
    hours, step = _SPANS.get(span, _SPANS["day"])
    camera = request.query_params.get("camera", "")
    page.history.flush()
    now_ns = time.time_ns()
    last = now_ns // HOUR_NS + 1
    first = last - hours
    told, _ = page.agent.ask("drift")
    assert isinstance(told, dict)
    calibration = told["calibration"]
    rows = _rows(page, camera, first, last, step)
    highest = max((row["ng"] or 0.0 for row in rows), default=0.0)
    return {
        "span": span if span in _SPANS else "day",
        "spans": list(_SPANS),
        "camera": camera,
        "cameras": page.history.cameras(),
        "rows": rows,
        "highest": highest,
        "ng_bars": [[_bar(row, highest)] for row in rows],
        "told": told,
        "bars": score_bars(page.history, calibration, first * HOUR_NS) if calibration else [],
        "needed": calibration
        and good_parts_needed(
            max_false_reject=calibration["max_false_reject"], confidence=calibration["confidence"]
        ),
    }


def _rows(page: Page, camera: str, first: int, last: int, step: int) -> list[dict[str, Any]]:
    """Figures of every `step` hours, the oldest first."""
    hourly = HistorySource(page.history, page.agent).hourly(first * HOUR_NS, last * HOUR_NS)
    rows = []
    for begin in range(first, last, step):
        counts = dict.fromkeys(State, 0)
        for (hour, name, state), parts in hourly.items():
            if begin <= hour < begin + step and camera in {"", name}:
                counts[state] += parts
        rows.append(_row(page, begin, step, counts))
    return rows


def _bar(row: dict[str, Any], highest: float) -> Bar:
    height = (row["ng"] or 0.0) / highest if highest else 0.0
    return Bar(height=height, says=f"{row['when']}: {percent(row['ng'])}", kind="ng")


def _row(page: Page, begin: int, step: int, counts: dict[State, int]) -> dict[str, Any]:
    total, moment = sum(counts.values()), local(begin * HOUR_NS)
    when = f"{moment:%H:%M}" if step == 1 else f"{moment:%m-%d %H:%M}"
    p99 = p99_s(page.history, begin, begin + step) if total else None
    return {
        "when": when,
        "total": total,
        "yield": counts[State.OK] / total if total else None,
        "ng": counts[State.NG] / total if total else None,
        "dropped": counts[State.DROPPED],
        "p99_ms": None if p99 is None else p99 * 1e3,
    }


SCREEN = Screen(name="history", role=Role.ENGINEER, order=50, show=show)
