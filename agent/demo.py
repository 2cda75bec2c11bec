"""The demo: generated parts, the real line, a broker in the process, a subscriber that listens.

    conveyor ─▶ line ─▶ ledger ─▶ MQTT ─▶ broker ─▶ MQTT ─▶ subscriber
        └────────── truth ──────────▶ compared ◀── verdicts

Only the parts are made up. Inspection, ledger and delivery are those of `agent run`.
"""

import json
import secrets
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Final

from agent.cameras.conveyor import ConveyorCamera, ConveyorSettings
from agent.inference.child import ChildInspector, Setup
from agent.mqtt.link import Subscriber
from agent.part import Part, State
from agent.ports import CameraContext
from agent.process import prepare_process
from agent.services.page.access import USERS, Access, Role
from agent.services.page.service import listen
from agent.services.page.settings import PageSettings
from agent.settings import (
    AgentSettings,
    BundleSettings,
    CheckSettings,
    Config,
    EvidenceSettings,
    LedgerSettings,
)
from agent.sinks.mqtt.broker import EmbeddedBroker
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.run import run_station
from agent.station.station import Model
from agent.station.summary import Latency
from agent.synthetic.flange import GOOD
from calibration.record import calibrated_runtime, read_calibration
from engine.bundle import open_bundle

AGENT_ID: Final = "demo"
BUNDLE: Final = Path(__file__).parent / "demo_bundle"
DEFECT_RATE: Final = 0.1
_FILTER: Final = f"atac/{AGENT_ID}/#"
_ALARM_TOPIC: Final = f"atac/{AGENT_ID}/alarm"
_THUMBNAIL_TOPIC: Final = f"atac/{AGENT_ID}/thumbnail"
_LAST_ALARM_S: Final = 5.0
_AUDIT: Final = 0.05
_PAGE: Final = PageSettings()
_SCORES_KEPT: Final = 10_000
_SHOWN: Final = {"caught": 12, "missed": 12, "false_alarm": 12, "passed": 4}
"""How many parts of each outcome are kept with their pictures, for the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSummary:
    """What the demo came to, verdicts against the truth.

    `caught` defective parts were NG, `missed` ones OK; `passed` good parts were OK,
    `false_alarms` NG; `undecided` had no verdict. `alarms_sent` were recorded by the ledger,
    `alarms_received` taken off MQTT, each id once. Latencies are from frame to verdict.
    """

    parts: int
    caught: int
    missed: int
    false_alarms: int
    passed: int
    undecided: int
    looked_at_twice: int
    threshold: float
    seconds: float
    parts_per_second: float
    latency: Latency | None
    first_alarm_s: float | None
    alarms_sent: int
    alarms_received: int
    thumbnails_received: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shown:
    """One part for the report: `outcome` is a key of `_SHOWN`, `truth` good or its defect."""

    part: Part
    truth: str
    outcome: str


@dataclass(slots=True, kw_only=True, eq=False)
class Comparison:
    """Verdicts beside the truth, as the line goes; memory does not grow with the run."""

    camera: ConveyorCamera
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SHOWN, 0))
    undecided: int = 0
    shown: list[Shown] = field(default_factory=list)
    good_scores: deque[float] = field(default_factory=lambda: deque(maxlen=_SCORES_KEPT))
    defective_scores: deque[float] = field(default_factory=lambda: deque(maxlen=_SCORES_KEPT))

    def add(self, part: Part) -> None:
        """Compare one verdict; called in the recording thread."""
        found, frame, state = part.inspection, part.frame, part.ended.state
        if found is None or frame is None or state not in {State.OK, State.NG}:
            self.undecided += 1
            return
        truth = self.camera.truth(frame.number)
        if truth == GOOD:
            outcome = "passed" if state is State.OK else "false_alarm"
            self.good_scores.append(found.score)
        else:
            outcome = "caught" if state is State.NG else "missed"
            self.defective_scores.append(found.score)
        if self.counts[outcome] < _SHOWN[outcome]:
            self.shown.append(Shown(part=part, truth=truth, outcome=outcome))
        self.counts[outcome] += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One alarm as it came over MQTT; `box` is `(left, top, right, bottom)` in frame pixels."""

    part_id: str
    state: str
    score: float | None
    threshold: float | None
    box: tuple[int, int, int, int] | None
    reason: str | None


def _box(passes: list[dict[str, dict[str, int]]]) -> tuple[int, int, int, int] | None:
    """What the last pass looked at."""
    if not passes:
        return None
    box = passes[-1]["box"]
    return box["left"], box["top"], box["right"], box["bottom"]


class Listener:
    """What a subscriber hears; `show` is called with each alarm, once, in its thread."""

    def __init__(self, started: float, show: Callable[[Alarm], None]) -> None:
        self._started = started
        self._show = show
        self._changed = threading.Condition()
        self._ids: set[str] = set()
        self.thumbnails = 0
        self.first_s: float | None = None

    @property
    def alarms(self) -> int:
        return len(self._ids)

    def hear(self, topic: str, payload: bytes) -> None:
        """Take one message."""
        if topic == _THUMBNAIL_TOPIC:
            self.thumbnails += 1
        if topic != _ALARM_TOPIC:
            return
        content = json.loads(payload)
        if content["id"] in self._ids:  # QoS 1 may deliver twice
            return
        if self.first_s is None:
            self.first_s = monotonic() - self._started
        self._show(
            Alarm(
                part_id=content["part_id"],
                state=content["state"],
                score=content["score"],
                threshold=content["threshold"],
                box=_box(content["passes"]),
                reason=content["reason"],
            )
        )
        with self._changed:
            self._ids.add(content["id"])
            self._changed.notify_all()

    def wait_for(self, alarms: int, timeout_s: float) -> None:
        """Wait until this number of alarms has arrived, or for `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._ids) >= alarms, timeout_s)


def run_demo(
    *,
    parts: int | None,
    seed: int,
    rate: float | None,
    stop: threading.Event,
    started: float,
    ready: Callable[[str], None],
    show: Callable[[Alarm], None],
    page: Callable[[str, str], None] | None = None,
    bundle_path: Path = BUNDLE,
) -> tuple[DemoSummary, Comparison]:
    """Run until `parts` have passed or `stop` is set.

    `rate` is in parts a minute; `None` is as fast as they can be inspected. `started` is the
    `monotonic()` when the program began. `ready` gets the command line that would show the
    same alarms, before the first part comes; `show` gets each alarm. `page` gets the address of the
    operator's page and the password of its user `demo`; without it there is none.
    """
    prepare_process()
    bundle = open_bundle(bundle_path)
    calibrated = read_calibration(bundle)
    runtime = calibrated_runtime(bundle, calibrated)
    setup = Setup(
        bundle=bundle_path,
        bundle_id=bundle.id,
        backend=runtime.backend,
        precision=runtime.precision,
    )
    threshold = calibrated.calibration.threshold
    settings = ConveyorSettings(seed=seed, defect_rate=DEFECT_RATE, parts_per_minute=rate)
    camera = ConveyorCamera(settings, CameraContext(stop=stop))
    comparison = Comparison(camera=camera)
    listener = Listener(started, show)
    with ExitStack() as stack:
        inspector = stack.enter_context(ChildInspector(setup))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="atac-demo-")))
        broker = stack.enter_context(EmbeddedBroker())
        mqtt = MqttSettings(host=broker.host, port=broker.port, version="3.1.1")
        stack.enter_context(Subscriber(mqtt, _FILTER, listener.hear))
        ready(f"mosquitto_sub -h {broker.host} -p {broker.port} -t {_ALARM_TOPIC}")
        config = Config(
            agent=AgentSettings(id=AGENT_ID),
            bundle=BundleSettings(path=bundle_path),
            cameras=(settings,),
            sinks=(mqtt,),
            ledger=LedgerSettings(path=folder / "ledger.sqlite"),
            evidence=EvidenceSettings(folder=folder / "evidence", audit=_AUDIT),
            check=CheckSettings(folder=folder / "checks"),
            services=() if page is None else (_page(folder / "ledger.sqlite", page),),
        )
        summary = run_station(
            config,
            cameras=[camera],
            inspector=inspector,
            model=Model.of(calibrated).on(inspector),
            parts=parts,
            stop=stop,
            started=started,
            observers=(comparison.add,),
        )
        listener.wait_for(summary.alarms, _LAST_ALARM_S)
    counts = comparison.counts
    return (
        DemoSummary(
            parts=summary.triggers,
            caught=counts["caught"],
            missed=counts["missed"],
            false_alarms=counts["false_alarm"],
            passed=counts["passed"],
            undecided=comparison.undecided,
            looked_at_twice=summary.zoomed,
            threshold=threshold,
            seconds=summary.seconds,
            parts_per_second=summary.parts_per_second,
            latency=summary.latencies.get("end_to_end"),
            first_alarm_s=listener.first_s,
            alarms_sent=summary.alarms,
            alarms_received=listener.alarms,
            thumbnails_received=listener.thumbnails,
        ),
        comparison,
    )


def _page(ledger: Path, tell: Callable[[str, str], None]) -> PageSettings:
    """A page on its usual port, or on any that is free, with one user."""
    host, port = _PAGE.address
    for wanted in (port, 0):
        try:
            with listen(host, wanted) as listening:
                port = listening.getsockname()[1]
        except OSError:
            continue
        break
    settings, password = PageSettings(listen=f"{host}:{port}"), secrets.token_urlsafe(9)
    with Access(settings.place(ledger) / USERS, idle_s=0) as access:
        access.add_user(AGENT_ID, password, Role.ADMIN)
    tell(f"http://{settings.listen}", password)
    return settings
