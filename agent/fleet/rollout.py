"""A bundle goes from ring to ring, as long as the lines that have it report that they are well."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from agent.fleet.desired import LINE, STOP, Desired, Stop, current, repository_of
from agent.fleet.oci import Registry
from agent.fleet.plan import FleetPlan, RollOutSettings
from agent.fleet.reports import Report

_WRONG: Final = ("refused", "rolled back", "stopped")
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is to be done next, in the ring of this number: `lines` to publish for, or to wait for.

    `why` says it for people.
    """

    kind: Literal["publish", "wait", "stop", "done"]
    ring: int
    lines: tuple[str, ...] = ()
    why: str = ""


def next_step(
    rings: Sequence[Sequence[str]],
    bundle_id: str,
    *,
    published: Mapping[str, int],
    reports: Mapping[str, Report],
    rules: RollOutSettings,
) -> Step:
    """What a roll-out does next; it keeps nothing, so it can be begun again at any time.

    Args:
        rings: The lines of each.
        bundle_id: What rolls out.
        published: The serials of desired states that name this bundle, by line.
        reports: What lines say of themselves.
        rules: When a ring is well.
    """
    for number, ring in enumerate(rings, start=1):
        missing = tuple(line for line in ring if line not in published)
        if missing:
            return Step(kind="publish", ring=number, lines=missing)
        allowed = int(rules.tolerate * len(ring))
        faults, waiting = [], []
        for line in ring:
            report = reports.get(line)
            if report is None or report.serial != published[line]:
                waiting.append(line)
            elif (fault := _fault(report, rules)) is not None:
                faults.append(f"{line}: {fault}")
            elif not (report.is_online and report.has_in_force(bundle_id)):
                waiting.append(line)
        if len(faults) > allowed:
            more = f", and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
            return Step(kind="stop", ring=number, why="; ".join(faults[:_SHOWN]) + more)
        if len(faults) + len(waiting) > allowed:
            return Step(kind="wait", ring=number, lines=tuple(waiting), why=_said(waiting, reports))
    return Step(kind="done", ring=len(rings))


def _said(waiting: Sequence[str], reports: Mapping[str, Report]) -> str:
    """What the first line that is waited for says, where it says anything."""
    report = reports.get(waiting[0])
    if report is None:
        return "silent"
    if not report.is_online:
        return "offline"
    return f"{report.state}: {report.reason}" if report.reason else report.state or ""


def _fault(report: Report, rules: RollOutSettings) -> str | None:
    """Why a line is not well with its bundle; `None`: it is, or it is not known yet."""
    if report.state in _WRONG:
        return f"{report.state}: {report.reason}"
    if report.state not in {"in force", "on trial"}:
        return None
    judged, changed = report.judged or 0, report.changed_verdicts or 0
    if changed > rules.max_changed * judged:
        return f"{changed} of {judged} kept frames have another verdict"
    if report.max_false_reject is None:
        return "it reports no promise"
    if report.max_false_reject > rules.max_false_reject:
        return f"it promises no less than {report.max_false_reject:.3g} false rejects"
    return None


class RollOut:
    """One roll-out: what is published is in the registry, and how lines are they say themselves.

    Args:
        plan: The lines and the rules.
        bundle_id: What rolls out.
        registry: Has desired states and the stop.
        place: For which product, or for the whole line.
        publish: Signs and publishes a line's desired state, and gives the serial of its bundle.
        heard: What these lines say of themselves now.
        now: UTC.
    """

    def __init__(
        self,
        plan: FleetPlan,
        bundle_id: str,
        registry: Registry,
        *,
        place: str = LINE,
        publish: Callable[[str], int],
        heard: Callable[[Collection[str]], Mapping[str, Report]],
        now: Callable[[], datetime],
    ) -> None:
        self._plan = plan
        self._bundle_id = bundle_id
        self._place = place
        self._registry = registry
        self._publish = publish
        self._heard = heard
        self._now = now
        self._published: dict[str, int] = {}
        self._looked: set[str] = set()

    def step(self) -> Step:
        """Do the next step, as far as it is ours."""
        if (why := self._stopped()) is not None:
            return Step(kind="stop", ring=0, why=f"the fleet is stopped: {why}")
        reports = self._heard(self._published) if self._published else {}
        step = self._next(reports)
        while step.kind == "publish" and not self._looked.issuperset(step.lines):
            reports = {**reports, **self._heard(step.lines)}
            self._published |= self._published_before(step.lines, reports)
            step = self._next(reports)
        if step.kind == "publish":
            self._published |= {line: self._publish(line) for line in step.lines}
        return step

    def _next(self, reports: Mapping[str, Report]) -> Step:
        said = {line: report.at(self._place) for line, report in reports.items()}
        return next_step(
            self._plan.rings,
            self._bundle_id,
            published=self._published,
            reports={line: report for line, report in said.items() if report is not None},
            rules=self._plan.roll_out,
        )

    def _stopped(self) -> str | None:
        found = current(self._registry, STOP, Stop, self._plan.key, option="key")
        return (found[0].why or "without a reason") if found and found[0].is_stopped else None

    def _published_before(
        self, lines: Iterable[str], reports: Mapping[str, Report]
    ) -> dict[str, int]:
        """What an earlier command has published for these lines, where they may obey it."""
        known, now = {}, self._now()
        for line in lines:
            self._looked.add(line)
            found = current(
                self._registry, repository_of(line), Desired, self._plan.key, option="key"
            )
            if found is None:
                continue
            state, report = found[0], reports.get(line)
            wanted = state.wanted.get(self._place)
            is_newer = report is None or report.serial is None or state.serial >= report.serial
            if wanted is None or (state.agent, wanted.bundle) != (line, self._bundle_id):
                continue
            if is_newer and state.ends > now:
                known[line] = wanted.serial
        return known
