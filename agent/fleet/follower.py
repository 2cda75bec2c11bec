"""Follows the desired state of one agent: from the registry to a bundle in force, or back.

    poll ─▶ signed, for us, newer, not expired ─▶ pull ─▶ calibrate ─▶ shadow ─▶ promote ─▶ trial
              └─▶ refused, and said why             kept frames judged again ─┘      │
                                                   rolled back ◀── out of its band ──┴─▶ in force

Whatever goes wrong is a state and a reason, and the line goes on with the bundle that it has. What
may get better by itself (a registry that is away, a full disk, too few good parts) is tried again,
with exponential back-off.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal, Protocol

from agent.fleet.bundles import forget_others, pull_bundle, pull_calibration
from agent.fleet.desired import (
    CURRENT,
    STOP,
    Desired,
    Stop,
    current,
    repository_of,
    require_current,
    require_newer,
    require_ours,
)
from agent.fleet.kept import Ends, Kept, read_kept, write_kept
from agent.fleet.oci import Registry
from agent.fleet.settings import TrialSettings
from agent.station.status import FleetState, FleetStatus, Promise
from engine.bundle import Bundle
from engine.errors import AtacError, DesiredStateError, RegistryError

_FEWEST: Final = 20
"""Of fewer frames no share is taken."""
_RETRY_MAX_S: Final = 3600.0
_CLOCKS: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """What inspects on the line now, and how its parts have ended so far."""

    bundle_id: str
    ends: Ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadowed:
    """Of `judged` kept frames a bundle gives `changed` another verdict than they had."""

    judged: int
    changed: int


class Line(Protocol):
    """What this asks of the line; each may take its time, and raises an `AtacError`."""

    def now(self) -> InForce:
        """What inspects now."""
        ...

    def promise(self) -> Promise | None:
        """The promise of what is in force."""
        ...

    def calibrate(self, bundle: Bundle, *, is_own: bool) -> Promise:
        """The promise of a threshold for `bundle`; with `is_own` it is set from our good parts."""
        ...

    def shadow(self, bundle: Bundle) -> Shadowed | None:
        """The kept frames judged by `bundle`; `None`: there are none."""
        ...

    def change(self, kind: Literal["promote", "rollback"], bundle: Bundle | None, why: str) -> None:
        """Have the next part inspected by another bundle, or by that from before."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Whom an agent obeys, and how far a bundle may change what it says.

    `key` is the public key of whoever signs; `option` is where it was named. More than the share
    `max_changed` of other verdicts on kept frames is too much.
    """

    agent_id: str
    key: Path
    option: str
    max_changed: float
    trial: TrialSettings


class Follower:
    """One agent of a fleet; used by one thread, which calls `poll` seldom and `watch` often.

    Args:
        registry: Has the desired state.
        line: Is brought into it.
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
        line: Line,
        folder: Path,
        rules: Rules,
        *,
        tell: Callable[[FleetStatus], None],
        now: Callable[[], datetime],
        clock: Callable[[], float],
        every_s: float,
    ) -> None:
        self._registry = registry
        self._line = line
        self._folder = folder
        self._rules = rules
        self._tell = tell
        self._now = now
        self._clock = clock
        self._every_s = every_s
        self._retry_s = every_s
        self._not_before = 0.0
        self._refusal: str | None = None
        self._kept = read_kept(folder)
        tell(self._kept.status)

    def poll(self) -> None:
        """Look at the registry once, and do what follows from it."""
        status = self._kept.status
        try:
            remark = self._poll()
        except RegistryError as error:
            # Where somebody alters what we pull, people should know at once.
            if error.is_altered:
                self._refuse(error)
            else:
                state: FleetState = self._kept.status.state if self._refusal is None else "refused"
                self._tell(replace(self._kept.status, state=state, reason=str(error)))
        except AtacError as error:
            self._refuse(error)
        else:
            if self._kept.status is status:
                state = status.state if self._refusal is None else "refused"
                reason = self._refusal or remark or self._clocks_differ() or status.reason
                self._tell(replace(status, state=state, reason=reason))

    def watch(self) -> None:
        """Look at the line: whether a trial has ended, or somebody else has changed the bundle."""
        status = self._kept.status
        if status.state not in {"on trial", "in force"}:
            return
        found = self._line.now()
        if found.bundle_id != status.bundle:
            self._settle(
                "rolled back", f"somebody has put bundle {found.bundle_id[:12]} in force instead"
            )
            return
        if self._kept.trial is None:
            return
        ends = found.ends.since(self._kept.trial)
        why = self._rules.trial.left(ends.ended, ng=ends.ng, errors=ends.errors)
        if why is not None and self._clock() >= self._not_before:
            self._go_back(why)
        elif why is None and ends.ended >= self._rules.trial.parts:
            self._settle("in force", None)

    def _refuse(self, error: AtacError) -> None:
        """What is refused stays so until it is tried again."""
        self._refusal = str(error)
        self._tell(replace(self._kept.status, state="refused", reason=self._refusal))

    # ---- from the registry to the line

    def _poll(self) -> str | None:
        """Look, and act; gives a remark where there was nothing to do."""
        kept, rules = self._kept, self._rules
        repository = repository_of(rules.agent_id)
        digest = self._registry.head(repository, CURRENT)
        if digest is not None and digest == kept.digest and kept.is_settled:
            self._refusal = None
            return self._expired()
        found = None
        if digest is not None:
            found = current(self._registry, repository, Desired, rules.key, option=rules.option)
        if found is None:
            self._refusal = None
            gone = "" if kept.status.serial is None else " any more"
            return f"the registry has no desired state for this agent{gone}"
        desired, digest = found
        require_ours(desired, rules.agent_id)
        require_newer(desired, digest, kept.status.serial or 0, kept.digest)
        require_current(desired, self._now())
        if digest != kept.digest:
            self._take(desired, digest)
        if not self._kept.is_settled and self._clock() >= self._not_before:
            self._not_before = self._clock() + self._retry_s
            self._retry_s = min(2 * self._retry_s, _RETRY_MAX_S)
            self._refusal = None
            self._bring(desired)
        return None

    def _expired(self) -> str | None:
        """A remark once no newer state has come: a registry may be kept from giving one."""
        ends = datetime.fromisoformat(self._kept.expires)
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

    def _take(self, desired: Desired, digest: str) -> None:
        """Remember a newer state before anything is done about it."""
        status = FleetStatus(state="pulling", serial=desired.serial, bundle=desired.bundle)
        self._keep(
            replace(
                self._kept,
                digest=digest,
                expires=desired.expires,
                is_settled=False,
                trial=None,
                status=status,
            )
        )
        self._retry_s, self._not_before = self._every_s, 0.0

    def _bring(self, desired: Desired) -> None:
        """Bring the line into a desired state, unless everything is stopped."""
        if self._line.now().bundle_id == desired.bundle:
            self._arrive(self._kept.trial)
            return
        if self._is_stopped():
            return
        rules = self._rules
        self._say("pulling")
        bundle = pull_bundle(
            self._registry, desired.bundle, self._bundles, rules.key, option=rules.option
        )
        is_own = desired.calibration == "own"
        self._say("calibrating")
        if not is_own:
            pull_calibration(self._registry, desired.calibration, bundle)
        promise = self._line.calibrate(bundle, is_own=is_own)
        self._say("shadowing", promise=promise)
        found = self._line.shadow(bundle)
        if found is not None:
            self._say("shadowing", judged=found.judged, changed_verdicts=found.changed)
            if found.judged >= _FEWEST and found.changed > rules.max_changed * found.judged:
                self._settle(
                    "refused",
                    f"{found.changed} of {found.judged} kept frames would have another verdict, "
                    f"more than the {rules.max_changed:.3g} of max_changed: compare them first",
                )
                return
        if self._is_stopped():
            return
        before = self._line.now()
        self._keep(replace(self._kept, trial=before.ends))  # also for who is killed just then
        self._line.change("promote", bundle, f"desired state {desired.serial}")
        self._arrive(self._line.now().ends)
        forget_others(self._bundles, {bundle.id, before.bundle_id})

    def _arrive(self, trial: Ends | None) -> None:
        """The bundle is in force; with a `trial` it still has to show that it fits."""
        if trial is None:
            promise = self._kept.status.promise or self._line.promise()
            self._settle("in force", None, promise=promise)
        else:
            parts = self._rules.trial.parts
            self._settle("on trial", f"until {parts} parts have ended", trial=trial)

    def _go_back(self, why: str) -> None:
        self._not_before = self._clock() + self._every_s
        try:
            self._line.change("rollback", None, why)
        except AtacError as error:
            self._tell(replace(self._kept.status, reason=f"{why}; it cannot go back: {error}"))
            return
        self._settle("rolled back", why)

    def _is_stopped(self) -> bool:
        """Whether somebody has stopped the fleet; what was heard last holds where nothing is."""
        rules, kept = self._rules, self._kept
        found = current(self._registry, STOP, Stop, rules.key, option=rules.option)
        if found is not None:
            stop = found[0]
            if stop.serial < kept.stop_serial:
                raise DesiredStateError(
                    f"the stop in the registry has serial {stop.serial}, and {kept.stop_serial} is "
                    "known already: an old one was put back"
                )
            if stop.serial > kept.stop_serial:
                self._keep(
                    replace(
                        kept,
                        stop_serial=stop.serial,
                        is_stopped=stop.is_stopped,
                        stopped_why=stop.why,
                    )
                )
        if self._kept.is_stopped:
            self._not_before = 0.0  # asking is cheap
            self._say("stopped", reason=self._kept.stopped_why or "the fleet is stopped")
        return self._kept.is_stopped

    # ---- what is said and kept

    @property
    def _bundles(self) -> Path:
        return self._folder / "bundles"

    def _say(
        self,
        state: FleetState,
        *,
        reason: str | None = None,
        promise: Promise | None = None,
        judged: int | None = None,
        changed_verdicts: int | None = None,
    ) -> None:
        """How far it is; what is left out stays as it was, but for the reason."""
        known = self._kept.status
        status = replace(
            known,
            state=state,
            reason=reason,
            promise=promise or known.promise,
            judged=known.judged if judged is None else judged,
            changed_verdicts=(
                known.changed_verdicts if changed_verdicts is None else changed_verdicts
            ),
        )
        self._keep(replace(self._kept, status=status))

    def _settle(
        self,
        state: FleetState,
        reason: str | None,
        *,
        promise: Promise | None = None,
        trial: Ends | None = None,
    ) -> None:
        """Nothing more is to be done about this state, also where that cannot be written."""
        known = self._kept.status
        status = replace(known, state=state, reason=reason, promise=promise or known.promise)
        kept = replace(self._kept, is_settled=True, trial=trial, status=status)
        try:
            self._keep(kept)
        except DesiredStateError as error:
            self._tell(replace(status, reason=str(error)))

    def _keep(self, kept: Kept) -> None:
        before, self._kept = self._kept, kept
        try:
            write_kept(self._folder, kept)
        except DesiredStateError:
            if not kept.is_settled:
                self._kept = before
            raise
        if kept.status is not before.status:
            self._tell(kept.status)
