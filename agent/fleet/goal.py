"""One bundle on its way into force, or back; on a line with products, that of one product.

    pull ─▶ calibrate ─▶ shadow ─▶ promote ─▶ trial ─▶ in force
                           │                    └─▶ out of its band: rolled back
                           └─▶ kept frames get too many other verdicts: refused

Whatever goes wrong is a state and a reason, and the line goes on with the bundle that it has. What
may get better by itself (a registry that is away, a full disk, too few good parts) is tried again,
with exponential back-off.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Protocol

from agent.fleet.bundles import pull_bundle, pull_calibration
from agent.fleet.desired import Wanted
from agent.fleet.kept import Ends, Going, Memory
from agent.fleet.oci import Registry
from agent.fleet.settings import TrialSettings
from agent.station.status import DesiredStatus, FleetState, Promise
from engine.bundle import Bundle
from engine.errors import AtacError, DesiredStateError, RegistryError

_FEWEST: Final = 20
"""Of fewer frames no share is taken."""
_RETRY_MAX_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """The bundle that inspects now, and how its parts have ended so far."""

    bundle_id: str
    ends: Ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadowed:
    """Of `judged` kept frames a bundle gives `changed` another verdict than they had."""

    judged: int
    changed: int


class Line(Protocol):
    """What this asks of the line, or of a product of it: each raises an `AtacError`.

    What takes its time calls `meanwhile` again and again.
    """

    def now(self) -> InForce:
        """What inspects now."""
        ...

    def promise(self) -> Promise | None:
        """The promise of what is in force."""
        ...

    def calibrate(self, bundle: Bundle, *, is_own: bool, meanwhile: Callable[[], None]) -> Promise:
        """The promise of a threshold for `bundle`; with `is_own` it is set from our good parts."""
        ...

    def shadow(self, bundle: Bundle, *, meanwhile: Callable[[], None]) -> Shadowed | None:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What all goals of an agent share.

    Args:
        registry: Has the bundles.
        bundles: The folder that gets them.
        rules: Whom to obey.
        memory: Keeps what became of each bundle.
        stopped: Asks whether somebody has stopped the fleet, and why; `None`: nobody has.
        changed: Hears that a goal's status is another one, though nothing was kept.
        meanwhile: Watches the other goals while one is being reached.
        tidy: Removes what was pulled, but for these bundles and those that are needed.
        clock: Steady seconds.
        every_s: How soon something is tried again.
    """

    registry: Registry
    bundles: Path
    rules: Rules
    memory: Memory
    stopped: Callable[[], str | None]
    changed: Callable[[], None]
    meanwhile: Callable[[], None]
    tidy: Callable[[set[str]], None]
    clock: Callable[[], float]
    every_s: float


def passes(error: AtacError) -> bool:
    """Whether it may get better by itself; where somebody alters what we pull, people should know
    at once.
    """
    return isinstance(error, RegistryError) and not error.is_altered


class Goal:
    """One place on a line for a bundle: the line itself, or a product of it.

    Args:
        place: What it is called.
        line: Is brought into the desired state.
        fleet: What it shares with the other goals.
    """

    def __init__(self, place: str, line: Line, fleet: Fleet) -> None:
        self._place = place
        self.line: Final = line
        self._fleet = fleet
        self._refusal: str | None = None
        self._remark: str | None = None
        self.begin_again()

    def begin_again(self) -> None:
        """Something new is desired: try it at once."""
        self._refusal = self._remark = None
        self._retry_s, self._not_before = self._fleet.every_s, 0.0

    @property
    def status(self) -> DesiredStatus:
        """What became of its bundle, and what is in the way just now."""
        status = self._going.status
        return replace(
            status,
            state=status.state if self._refusal is None else "refused",
            reason=self._remark or self._refusal or status.reason,
        )

    def bring(self, wanted: Wanted) -> None:
        """Bring the line into a desired state, unless that is settled or was tried just before."""
        fleet = self._fleet
        if self._going.is_settled or fleet.clock() < self._not_before:
            return
        self._not_before = fleet.clock() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _RETRY_MAX_S)
        self._refusal = self._remark = None
        try:
            self._bring(wanted)
        except AtacError as error:
            if passes(error):
                self._remark = str(error)
            else:
                self._refusal = str(error)
        fleet.changed()

    def watch(self) -> None:
        """Look at the line: whether a trial has ended, or somebody else has changed the bundle."""
        going, trial = self._going, self._fleet.rules.trial
        if going.status.state not in {"on trial", "in force"}:
            return
        found = self.line.now()
        if found.bundle_id != going.status.bundle:
            self._settle(
                "rolled back", f"somebody has put bundle {found.bundle_id[:12]} in force instead"
            )
            return
        if going.trial is None:
            return
        ends = found.ends.since(going.trial)
        why = trial.left(ends.ended, ng=ends.ng, errors=ends.errors)
        if why is not None and self._fleet.clock() >= self._not_before:
            self._go_back(why)
        elif why is None and ends.ended >= trial.parts:
            self._settle("in force", None)

    def _bring(self, wanted: Wanted) -> None:
        if self.line.now().bundle_id == wanted.bundle:
            self._arrive(self._going.trial)
            return
        if self._is_stopped():
            return
        fleet, rules = self._fleet, self._fleet.rules
        self._say("pulling")
        bundle = pull_bundle(
            fleet.registry,
            wanted.bundle,
            fleet.bundles,
            rules.key,
            option=rules.option,
            meanwhile=fleet.meanwhile,
        )
        is_own = wanted.calibration == "own"
        self._say("calibrating")
        if not is_own:
            pull_calibration(fleet.registry, wanted.calibration, bundle)
        promise = self.line.calibrate(bundle, is_own=is_own, meanwhile=fleet.meanwhile)
        self._say("shadowing", promise=promise)
        found = self.line.shadow(bundle, meanwhile=fleet.meanwhile)
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
        before = self.line.now()
        self._keep(replace(self._going, trial=before.ends))  # also for who is killed just then
        self.line.change("promote", bundle, f"desired state {wanted.serial}")
        self._arrive(self.line.now().ends)
        fleet.tidy({bundle.id, before.bundle_id})

    def _arrive(self, trial: Ends | None) -> None:
        """The bundle is in force; with a `trial` it still has to show that it fits."""
        if trial is None:
            promise = self._going.status.promise or self.line.promise()
            self._settle("in force", None, promise=promise)
        else:
            parts = self._fleet.rules.trial.parts
            self._settle("on trial", f"until {parts} parts have ended", trial=trial)

    def _go_back(self, why: str) -> None:
        self._not_before = self._fleet.clock() + self._fleet.every_s
        try:
            self.line.change("rollback", None, why)
        except AtacError as error:
            self._remark = f"{why}; it cannot go back: {error}"
            self._fleet.changed()
            return
        self._settle("rolled back", why)

    def _is_stopped(self) -> bool:
        why = self._fleet.stopped()
        if why is not None:
            self._not_before = 0.0  # asking is cheap
            self._say("stopped", reason=why)
        return why is not None

    # ---- what is said and kept

    @property
    def _going(self) -> Going:
        return self._fleet.memory.kept.bundles[self._place]

    def _keep(self, going: Going) -> None:
        self._fleet.memory.put(self._place, going)

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
        known = self._going.status
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
        self._keep(replace(self._going, status=status))

    def _settle(
        self,
        state: FleetState,
        reason: str | None,
        *,
        promise: Promise | None = None,
        trial: Ends | None = None,
    ) -> None:
        """Nothing more is to be done about this bundle, also where that cannot be written."""
        known = self._going.status
        status = replace(known, state=state, reason=reason, promise=promise or known.promise)
        self._refusal = self._remark = None
        try:
            self._keep(Going(is_settled=True, trial=trial, status=status))
        except DesiredStateError as error:
            self._remark = str(error)
            self._fleet.changed()
