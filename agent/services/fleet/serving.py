"""The threads of the fleet's process: one that follows the registry, and the pulse.

    atac-fleet-pulse ── how the line is ──▶ main ─▶ registry, `agent calibrate`, `agent compare`

What is heavy is a process of its own, as nice as this one: its memory is given back at its end.
"""

import json
import logging
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

from pydantic import TypeAdapter

from agent.bundle_places import put_next
from agent.child import AgentEnd, RefusedError
from agent.child_start import COMMAND
from agent.fleet.follower import Follower
from agent.fleet.goal import InForce, Rules, Shadowed
from agent.fleet.oci import Registry
from agent.labelled import calibration_parts, put_pictures
from agent.record.evidence_files import kept
from agent.services.fleet import FleetSettings
from agent.station.status import FleetStatus, Promise
from calibration.record import read_calibration
from engine.bundle import Bundle, open_bundle
from engine.errors import AtacError, DesiredStateError

_LOG: Final = logging.getLogger("atac_agent.fleet")
_TICK_S: Final = 0.5
_JITTER: Final = (2 / 3, 4 / 3)
_FRAMES: Final = 200
_DAYS: Final = 36_500
_JUDGING_S: Final = 3600.0
_CHANGING_S: Final = 150.0
"""A start of the inference process may take two minutes."""
_SETTINGS: Final = TypeAdapter(FleetSettings)
_IN_FORCE: Final = TypeAdapter(Mapping[str, InForce])


def serve(argument: str) -> None:
    """Follow the desired state until the agent goes."""
    logging.basicConfig(format="agent: %(message)s", level=logging.WARNING)
    agent, _ = AgentEnd.taken(argument)
    pulse = Pulse(agent)
    threading.Thread(target=pulse.beat, name="atac-fleet-pulse", daemon=True).start()
    try:
        _follow(agent, pulse)
    except ConnectionError:
        os._exit(0)  # the agent has gone


def _follow(agent: AgentEnd, pulse: "Pulse") -> None:
    setup, settings = agent.setup, _SETTINGS.validate_python(agent.setup["settings"])
    told = _Told(agent)
    pulse.heard.wait()
    follower = None
    while follower is None:
        try:
            follower = Follower(
                Registry(settings.registry, password=setup["password"]),
                {place: AgentLine(agent, pulse, place) for place in setup["places"]},
                Path(setup["folder"]),
                Rules(
                    agent_id=setup["agent_id"],
                    key=Path(setup["key"]),
                    option=setup["option"],
                    max_changed=settings.max_changed,
                    trial=settings.trial,
                ),
                tell=told.tell,
                now=lambda: datetime.now(UTC),
                clock=time.monotonic,
                every_s=settings.every_s,
            )
        except AtacError as error:  # until somebody mends it
            told.tell(FleetStatus(state="refused", reason=str(error)))
            time.sleep(settings.every_s)
    while True:
        follower.poll()
        until = time.monotonic() + settings.every_s * random.uniform(*_JITTER)
        while (left_s := until - time.monotonic()) > 0:
            follower.watch()
            time.sleep(min(_TICK_S, left_s))


class _Told:
    """Tells the agent of each change, and people of those that they should know."""

    def __init__(self, agent: AgentEnd) -> None:
        self._agent = agent
        self._last: FleetStatus | None = None

    def tell(self, status: FleetStatus) -> None:
        if status != self._last:
            self._last = status
            self._agent.ask("tell", status=asdict(status))
            if status.reason is not None:
                _LOG.warning("fleet: %s: %s", status.state, status.reason)


class Pulse:
    """Hears how the line is, again and again."""

    def __init__(self, agent: AgentEnd) -> None:
        self._agent = agent
        self.now: Mapping[str, InForce] = {}
        self.heard = threading.Event()

    def beat(self) -> None:
        """Ask how the line is, for ever."""
        with suppress(ConnectionError):
            while True:
                said, _ = self._agent.pulse("now")
                self.now = _IN_FORCE.validate_python(said)
                self.heard.set()
                time.sleep(_TICK_S)
        os._exit(0)


class AgentLine:
    """The line of our agent, or one product of it.

    Args:
        agent: The agent.
        pulse: Knows what inspects.
        place: What is desired for it is called so.
    """

    def __init__(self, agent: AgentEnd, pulse: Pulse, place: str) -> None:
        self._agent = agent
        self._pulse = pulse
        self._place = place
        setup = agent.setup
        self._settings = _SETTINGS.validate_python(setup["settings"])
        self._setup = setup["places"][place]
        self._bundle = Path(self._setup["bundle"])
        self._folder = Path(setup["folder"])
        if place:
            self._folder /= f"product {quote(place, safe=' ')}"
        self._good = self._folder / "good"

    def now(self) -> InForce:
        """See `Line`."""
        return self._pulse.now[self._place]

    def promise(self) -> Promise | None:
        """See `Line`."""
        with suppress(AtacError):
            return _promise(open_bundle(self._bundle))
        return None

    def calibrate(self, bundle: Bundle, *, is_own: bool, meanwhile: Callable[[], None]) -> Promise:
        """See `Line`."""
        if is_own:
            self._gather()
            arguments = ["--bundle", str(bundle.path), "--good", str(self._good), "--strict"]
            for option in ("backend", "precision"):
                arguments += [f"--{option}", self._setup[option]]
            if self._settings.max_false_reject is not None:
                arguments += ["--max-false-reject", str(self._settings.max_false_reject)]
            _agent(meanwhile, "calibrate", *arguments)
        return _promise(bundle)

    def shadow(self, bundle: Bundle, *, meanwhile: Callable[[], None]) -> Shadowed | None:
        """See `Line`; the page with the changes is `comparison.html` in the fleet's folder."""
        if not self._has_frames():
            return None
        names = {name: self._setup[name] for name in ("product", "camera")}
        found = _agent(
            meanwhile,
            "compare",
            *("--config", self._agent.setup["config_file"]),
            *("--bundle", str(bundle.path)),
            *(f"--{name}={value}" for name, value in names.items() if value is not None),
            *("--newest", str(_FRAMES), "--days", str(_DAYS)),
            *("--report", str(self._folder / "comparison.html")),
        )
        return Shadowed(judged=found["judged"], changed=len(found["changed"]))

    def change(self, kind: Literal["promote", "rollback"], bundle: Bundle | None, why: str) -> None:
        """See `Line`."""
        if bundle is not None:
            put_next(bundle, self._bundle)
        asked = {
            "kind": kind,
            "bundle_id": "" if bundle is None else bundle.id,
            "product": self._setup["product"],
            "camera": self._setup["camera"],
        }
        try:
            self._agent.ask("promotion", **asked, by="fleet", why=why, nonce="")
            until = time.monotonic() + _CHANGING_S
            while True:
                told: Any = self._agent.ask("promotion_status")[0]
                if told["error"] is not None:
                    raise DesiredStateError(told["error"])
                if not told["running"] and self.now().bundle_id == told["done"]["bundle_id"]:
                    return
                if time.monotonic() > until:
                    raise DesiredStateError("the agent has not changed its bundle in time")
                time.sleep(_TICK_S / 5)
        except RefusedError as error:
            raise DesiredStateError(str(error)) from None

    def _has_frames(self) -> bool:
        setup = self._agent.setup
        if setup["evidence"] is None:
            return False
        one = self._setup
        return bool(
            kept(
                Path(setup["evidence"]),
                setup["agent_id"],
                days=_DAYS,
                product=one["product"],
                cameras=one["cameras"],
            )
        )

    def _gather(self) -> None:
        """Put our good parts into one folder: those that are kept, and those of the audit."""
        files = calibration_parts(
            Path(self._agent.setup["labelled"]),
            self._settings.good_of(self._place),
            product=self._setup["product"],
            cameras=self._setup["cameras"],
        )
        if not files:
            raise DesiredStateError(
                f"no good part of {self._place or 'this line'} is kept to set a threshold with: "
                "name a folder of them in fleet.good, or label parts of the audit on the page"
            )
        try:
            put_pictures(files, self._good)
        except OSError as error:
            raise DesiredStateError(
                f"{self._good}: cannot be written ({error.strerror}); the line goes on with its "
                "bundle"
            ) from None


def _promise(bundle: Bundle) -> Promise:
    found = read_calibration(bundle).calibration
    return Promise(
        max_false_reject=found.max_false_reject,
        confidence=found.confidence,
        is_proved=found.is_proved,
        calibrated_at=found.created_at,
    )


def _agent(meanwhile: Callable[[], None], command: str, *arguments: str) -> Mapping[str, Any]:
    """What a command of ours answers; raises `DesiredStateError` with what it complains of."""
    until = time.monotonic() + _JUDGING_S
    with subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-P", "-c", COMMAND, command, *arguments, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        while True:
            try:
                said, complaint = process.communicate(timeout=_TICK_S)
                break
            except subprocess.TimeoutExpired:
                meanwhile()
                if time.monotonic() > until:
                    process.kill()
                    raise DesiredStateError(f"agent {command} did not end in time") from None
    if process.returncode:
        lines = complaint.decode(errors="replace").strip().splitlines() or ["it was ended"]
        raise DesiredStateError(f"agent {command}: {lines[-1].removeprefix('agent: ')}")
    answer: Mapping[str, Any] = json.loads(said)
    return answer
