"""Follows the desired state of one agent: from the registry to the bundles that it names.

    poll ─▶ signed, for us, newer, not expired ─▶ each bundle that it names (`goal`)
              └─▶ refused, and said why

On a line with products each of them has its own goal: what becomes of one is no matter of the
others, and while one is brought into force the others are watched.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, get_args

from agent.fleet.bundles import forget_others
from agent.fleet.desired import (
    CURRENT,
    LINE,
    STOP,
    Desired,
    Stop,
    current,
    repository_of,
    require_current,
    require_newer,
    require_ours,
)
from agent.fleet.goal import Fleet, Goal, Line, Rules, passes
from agent.fleet.kept import Going, Memory
from agent.fleet.oci import Registry
from agent.station.status import DesiredStatus, FleetState, FleetStatus
from engine.errors import AtacError, DesiredStateError

_CLOCKS: Final = timedelta(hours=1)
_WORST_FIRST: Final = ("refused", "rolled back", "stopped", *get_args(FleetState))


class Follower:
    """One agent of a fleet; used by one thread, which calls `poll` seldom and `watch` often.

    Args:
        registry: Has the desired state.
        lines: Are brought into it, by place: the products, or `LINE` alone.
        folder: Has what was pulled, and what must be remembered.
        rules: Whom to obey.
        tell: Hears of each change.
        now: UTC.
        clock: Steady seconds.
        every_s: How often `poll` is called.

    Raises:
        DesiredStateError: What was remembered cannot be read.
    """

    def __init__(
        self,
        registry: Registry,
        lines: Mapping[str, Line],
        folder: Path,
        rules: Rules,
        *,
        tell: Callable[[FleetStatus], None],
        now: Callable[[], datetime],
        clock: Callable[[], float],
        every_s: float,
    ) -> None:
        self._registry = registry
        self._folder = folder
        self._rules = rules
        self._tell = tell
        self._now = now
        self._refusal: str | None = None
        self._remark: str | None = None
        self._told: FleetStatus | None = None
        self._memory = Memory(folder, self._changed)
        fleet = Fleet(
            registry=registry,
            bundles=self._bundles,
            rules=rules,
            memory=self._memory,
            stopped=self._stopped,
            changed=self._changed,
            meanwhile=self.watch,
            tidy=self._tidy,
            clock=clock,
            every_s=every_s,
        )
        self._goals = {place: Goal(place, line, fleet) for place, line in lines.items()}
        self._changed()

    def poll(self) -> None:
        """Look at the registry once, and do what follows from it."""
        self._remark = None
        try:
            self._remark = self._poll()
        except AtacError as error:
            if passes(error):
                self._remark = str(error)
            else:
                self._refusal = str(error)
        self._changed()

    def watch(self) -> None:
        """Look at the line: whether a trial has ended, or somebody else has changed a bundle."""
        for goal in self._reached_for().values():
            goal.watch()

    def _poll(self) -> str | None:
        """Look, and act; gives a remark."""
        kept, rules = self._memory.kept, self._rules
        repository = repository_of(rules.agent_id)
        digest = self._registry.head(repository, CURRENT)
        is_settled = all(kept.bundles[place].is_settled for place in self._reached_for())
        if digest is not None and digest == kept.digest and is_settled:
            self._refusal = None
            return self._expired() or self._clocks_differ()
        found = None
        if digest is not None:
            found = current(self._registry, repository, Desired, rules.key, option=rules.option)
        if found is None:
            self._refusal = None
            gone = " any more" if kept.serial else ""
            return f"the registry has no desired state for this agent{gone}"
        desired, digest = found
        require_ours(desired, rules.agent_id)
        require_newer(desired, digest, kept)
        require_current(desired, self._now())
        if digest != kept.digest:
            self._take(desired, digest)
        self._refusal = None
        for place, wanted in desired.wanted.items():
            if place in self._goals:
                self._goals[place].bring(wanted)
        return self._clocks_differ()

    def _take(self, desired: Desired, digest: str) -> None:
        """Remember a newer state before anything is done about it.

        What an earlier one has said of a product with the same serial goes on as it is, and so does
        a trial of what is not named any more.
        """
        before, new = self._memory.kept.bundles, {}
        for place, one in desired.wanted.items():
            status = DesiredStatus(state="pulling", serial=one.serial, bundle=one.bundle)
            if place not in before or before[place].status.serial != one.serial:
                new[place] = Going(status=status)
        on_trial = {place for place in self._reached_for() if before[place].trial is not None}
        going = {place: before[place] for place in before if place in {*desired.wanted, *on_trial}}
        self._memory.keep(
            replace(
                self._memory.kept,
                serial=desired.serial,
                digest=digest,
                expires=desired.expires,
                bundles={**going, **new},
            )
        )
        for place in new.keys() & self._goals.keys():
            self._goals[place].begin_again()

    def _expired(self) -> str | None:
        """A remark once no newer state has come: a registry may be kept from giving one."""
        ends = datetime.fromisoformat(self._memory.kept.expires)
        if self._now() >= ends:
            return f"the desired state expired on {ends:%Y-%m-%d}, and no newer one has come"
        return None

    def _clocks_differ(self) -> str | None:
        """A remark where states would end at another time than was meant."""
        date = self._registry.date
        if date is None or abs(self._now() - date) < _CLOCKS:
            return None
        hours = abs(self._now() - date).total_seconds() / 3600
        return f"this machine's clock and the registry's differ by {hours:.0f} h; set one of them"

    def _stopped(self) -> str | None:
        """Why the fleet is stopped, where it is; what was heard last holds where nothing is."""
        rules, kept = self._rules, self._memory.kept
        found = current(self._registry, STOP, Stop, rules.key, option=rules.option)
        if found is not None:
            stop = found[0]
            if stop.serial < kept.stop_serial:
                raise DesiredStateError(
                    f"the stop in the registry has serial {stop.serial}, and {kept.stop_serial} is "
                    "known already: an old one was put back"
                )
            if stop.serial > kept.stop_serial:
                kept = replace(
                    kept,
                    stop_serial=stop.serial,
                    is_stopped=stop.is_stopped,
                    stopped_why=stop.why,
                )
                self._memory.keep(kept)
        return (kept.stopped_why or "the fleet is stopped") if kept.is_stopped else None

    # ---- what is there

    @property
    def _bundles(self) -> Path:
        return self._folder / "bundles"

    def _reached_for(self) -> dict[str, Goal]:
        """The goals for which a bundle is desired."""
        desired = self._memory.kept.bundles
        return {place: goal for place, goal in self._goals.items() if place in desired}

    def _tidy(self, needed: set[str]) -> None:
        desired = {one.status.bundle for one in self._memory.kept.bundles.values()}
        in_force = {goal.line.now().bundle_id for goal in self._goals.values()}
        forget_others(self._bundles, needed | in_force | {one for one in desired if one})

    # ---- what is told

    def _changed(self) -> None:
        """Tell how it is, where that is news."""
        kept = self._memory.kept
        found = {
            place: self._goals[place].status if place in self._goals else self._not_made(going)
            for place, going in kept.bundles.items()
        }
        status = together(found, kept.serial or None)
        status = replace(
            status,
            state=status.state if self._refusal is None else "refused",
            reason=self._remark or self._refusal or status.reason,
        )
        if status != self._told:
            self._told = status
            self._tell(status)

    def _not_made(self, going: Going) -> DesiredStatus:
        """Of a product that this line does not make."""
        return replace(going.status, state="refused", reason=not_made(self._goals))


def not_made(places: Collection[str]) -> str:
    """Why a bundle is refused that is for none of the `places` of a line."""
    if LINE in places:
        return "this line makes no products; name one bundle"
    return f"this line makes {', '.join(places)}; name one of them"


def together(found: Mapping[str, DesiredStatus], serial: int | None) -> FleetStatus:
    """The status of a line, from those of its products by place, or of its one bundle."""
    products = {place: one for place, one in found.items() if place != LINE}
    if not products:
        alone = found.get(LINE, DesiredStatus(serial=serial))
        return FleetStatus(**{each.name: getattr(alone, each.name) for each in fields(alone)})
    worst = min((one.state for one in found.values()), key=_WORST_FIRST.index)
    reasons = [
        f"{place}: {one.reason}" if place else one.reason
        for place, one in found.items()
        if one.state == worst and one.reason is not None
    ]
    judged = [one for one in products.values() if one.judged is not None]
    promises = [one.promise for one in products.values() if one.promise is not None]
    return FleetStatus(
        state=worst,
        serial=serial,
        reason="; ".join(reasons) or None,
        judged=sum(one.judged or 0 for one in judged) if judged else None,
        changed_verdicts=sum(one.changed_verdicts or 0 for one in judged) if judged else None,
        promise=max(promises, key=lambda one: one.max_false_reject, default=None),
        products=products,
    )
