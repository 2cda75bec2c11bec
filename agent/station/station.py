"""The station: cameras' parts are inspected in turns, and every one is accounted for.

    atac-camera, one each      main, atac-worker            atac-recorder       atac-ledger
    read ─▶ frame, trigger ─▶ part ─▶ queue ─▶ inspect ─▶ decide ─▶ thumbnail ─▶ commit ─▶ sinks
                                └─ skipped, lost, unusable ────────────▲

Inspection never waits for a receiver or a disk, and no camera for another. The queue holds two
parts of each camera, the recorder eight.
"""

import logging
import math
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Final, Protocol

from agent.cameras.settings import LineSettings
from agent.part import Part, State, Trigger, Verdict, decide, is_alarm
from agent.ports import (
    Announcement,
    Camera,
    Clock,
    Fired,
    HasFault,
    InFleet,
    Service,
    TriggerSource,
    Watched,
)
from agent.record.feed import Feed
from agent.record.retention import AgeClock
from agent.requests import Requests
from agent.settings import Config
from agent.station.acquisition import Acquisition, FrameIntake, Intake
from agent.station.audit import chance_if_drawn
from agent.station.controls import Controls, InForce, Ready
from agent.station.evidence import Evidence
from agent.station.live import Live
from agent.station.monitor import DropWatch, Monitor
from agent.station.product_source import ProductIntake
from agent.station.queue import PartQueue
from agent.station.recorder import Observer, Recorder
from agent.station.status import (
    CameraStatus,
    LedgerStatus,
    ProductStatus,
    SinkStatus,
    Status,
    place_name,
)
from agent.station.summary import Ends, Summary, Timing
from agent.station.threshold import ANY_SCORES
from agent.station.triggering import NameIntake, Triggering, TriggerIntake
from agent.station.workers import Progress, run_workers
from agent.triggers.settings import AnyTriggerSettings, WindowSettings
from calibration.record import Calibration, CalibrationRecord
from engine.errors import AtacError, NoAnswerError
from engine.frame import Frame, Inspection
from engine.image import visible
from engine.inspector import Inspector, TakesBayer

_LOG: Final = logging.getLogger("atac_agent.line")
_PAUSED: Final = "inspection is paused by request"
_DISCARDING: Final = "ledger: is full, and undelivered messages make room; see ledger.max_mb"


class Record(Protocol):
    """What the station needs of the ledger."""

    @property
    def epoch(self) -> str: ...
    @property
    def is_alive(self) -> bool: ...
    @property
    def ages(self) -> AgeClock: ...
    @property
    def feed(self) -> Feed: ...
    def may_leave(self, sequence: int, timeout_s: float, /) -> bool: ...
    def next_sequence(self, camera: str) -> int: ...
    def expect(self, part: Part) -> None: ...
    def record(self, part: Part, thumbnail: bytes | None) -> object: ...
    def cameras(self) -> Mapping[str, CameraStatus]: ...
    def status(self) -> LedgerStatus: ...
    def flush(self) -> bool: ...


class ServingInspector(Protocol):
    """An inspector that knows what it runs on and how it is."""

    @property
    def workers(self) -> int: ...
    @property
    def backend(self) -> str: ...
    @property
    def fault(self) -> str | None: ...


class Outlet(Protocol):
    """What the station needs of a sink that runs: how it is, and that it is told of the agent."""

    @property
    def name(self) -> str: ...
    @property
    def is_alive(self) -> bool: ...
    def status(self) -> SinkStatus: ...
    def report(self, status: Status) -> None: ...


class Watch(Protocol):
    """Hears of each part in the recording thread, and may find a fault."""

    @property
    def fault(self) -> str | None: ...
    def add(self, part: Part, /) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What inspects: the calibrated `threshold`, and what names bundle and calibration.

    `scores` are the lowest and the highest of the `calibration`. `workers` threads may call the
    inspector at once. `backend` says what it runs on, by its full name, and `fault` why it gives no
    answers just now.
    """

    threshold: float
    bundle_id: str = ""
    calibration_id: str = ""
    scores: tuple[float, float] = ANY_SCORES
    calibration: Calibration | None = None
    workers: int = 1
    backend: Callable[[], str] = lambda: ""
    fault: Callable[[], str | None] = lambda: None

    @classmethod
    def of(cls, record: CalibrationRecord) -> "Model":
        """The model of a calibrated bundle."""
        calibration = record.calibration
        return cls(
            threshold=calibration.threshold,
            bundle_id=calibration.bundle_id,
            calibration_id=record.id,
            scores=calibration.score_range,
            calibration=calibration,
        )

    def on(self, inspector: ServingInspector) -> "Model":
        """The same, served by `inspector`."""
        return replace(
            self,
            workers=inspector.workers,
            backend=lambda: inspector.backend,
            fault=lambda: inspector.fault,
        )


class Station:
    """The run from the cameras to the ledger.

    Args:
        config: What is known of cameras and their parts.
        cameras: Those of `config`, in its order, made with the same `stop`.
        inspector: Inspects a frame; called by `model.workers` threads at once.
        model: What inspects.
        record: The ledger, entered.
        outlets: The sinks, entered.
        controls: The threshold in force, and whether inspection is paused.
        clock: The time.
        stop: Ends the run; set with the last of `parts` and its frame, and on return.
        parts: How many triggers may begin; `None`: as many as come.
        started: `clock.now()` when the program began.
        observers: Are told of each part once it is recorded.
        triggers: The trigger sources by their camera's name, not entered; of a camera without one
            every frame is a part.
        part_ids: The sources of part ids, likewise.
        services: Make the services that read the status.
        requests: What services may ask of the agent.
        readers: Are told of each status, in the thread that makes it: they must not wait.
        config_file: Where `config` was read from.
        watches: Hear of each recorded part and may find a fault, by the name that it has then.
        product_source: Says what the line makes; not entered. Without one, requests do.
    """

    def __init__(
        self,
        config: Config,
        *,
        cameras: Sequence[Camera],
        inspector: Inspector,
        model: Model,
        record: Record,
        outlets: Sequence[Outlet],
        controls: Controls,
        clock: Clock,
        stop: threading.Event,
        parts: int | None = None,
        started: float | None = None,
        observers: Sequence[Observer] = (),
        triggers: Mapping[str, TriggerSource] = MappingProxyType({}),
        part_ids: Mapping[str, TriggerSource] = MappingProxyType({}),
        services: Sequence[Callable[[Watched], Service]] = (),
        requests: Requests | None = None,
        readers: Sequence[Callable[[Status], None]] = (),
        watches: Mapping[str, Watch] = MappingProxyType({}),
        config_file: Path | None = None,
        product_source: TriggerSource | None = None,
    ) -> None:
        self._config = config
        self._workers = model.workers
        self._record = record
        self._outlets = outlets
        self._controls = controls
        controls.begin(inspector, model)
        self._clock = clock
        self._stop = stop
        self._parts = parts
        self._started = clock.now() if started is None else started
        self._lines: dict[str, LineSettings] = config.lines
        self._name_products = {
            camera.name for camera in config.cameras if _window(camera.trigger).names_products
        }
        self._numbers_of_products = config.numbers
        self._made = ProductIntake(
            self._numbers_of_products,
            controls.products,
            controls.switch if requests is None else requests.follow,
        )
        self._made_by: Triggering | None = None
        if product_source is not None:
            self._made_by = Triggering(
                "line", product_source, self._made, stop=stop, clock=clock, noun="product"
            )
        self._announcing = threading.Lock()
        self._triggers = 0
        self._numbers: Counter[str] = Counter()
        self._first: float | None = None
        self._last = self._started
        self._alarms = 0
        self._ended = 0

        self._queue = PartQueue(self._lines)
        self._triggerings: dict[str, Triggering] = {}
        self._announced: dict[str, TriggerIntake] = {}
        self._readers: dict[str, Triggering] = {}
        self._names: dict[str, NameIntake] = {}
        for camera, opened in zip(config.cameras, cameras, strict=True):
            if (source := triggers.get(camera.name)) is not None:
                self._announce_by(camera.name, source, camera.trigger, opened)
            if (source := part_ids.get(camera.name)) is not None:
                self._name_by(camera.name, source, camera.part_ids)
        self._acquisitions = {
            name: self._acquisition(name, camera)
            for name, camera in zip(self._lines, cameras, strict=True)
        }
        controls.adjust_by(self._adjust)
        if controls.product is not None:
            self._adjust(controls.product)
        self._progress = Progress(clock)
        self._timing = Timing()
        self._ends = Ends(self._lines)
        self._ends_of = {name: dict.fromkeys(State, 0) for name, _ in self._ready()}
        self._drops = DropWatch(
            {name: line.max_dropped for name, line in self._lines.items()}, clock
        )
        self._evidence = Evidence(
            config.evidence,
            config.agent.id,
            record.epoch,
            ages=record.ages,
            may_leave=record.may_leave,
        )
        live = Live(clock.now)
        self._services: list[Service] = []
        self._watches = watches
        self._recorder = Recorder(
            record.record,
            wants_thumbnail=self._wants_thumbnail,
            observers=(
                self._count,
                self._evidence.offer,
                live.offer,
                *(watch.add for watch in watches.values()),
                *observers,
            ),
        )
        self.monitor: Final = Monitor(
            self._status,
            feed=record.feed,
            config=config,
            config_file=config_file,
            live=live,
            requests=requests,
            clock=clock,
            readers=[*(outlet.report for outlet in outlets), *readers],
        )
        self._services += [make(self.monitor) for make in services]

    def _announce_by(
        self, name: str, source: TriggerSource, settings: AnyTriggerSettings | None, camera: Camera
    ) -> None:
        """The parts of camera `name` are announced by `source`, before their frames."""
        intake = TriggerIntake(
            name,
            self._queue,
            _window(settings),
            begin=self._announce,
            end=self._end,
            clock=self._clock,
            runs_freely=not camera.triggered,
        )
        self._announced[name] = intake
        self._triggerings[name] = Triggering(
            name, source, intake, stop=self._stop, clock=self._clock
        )

    def _name_by(
        self, name: str, source: TriggerSource, settings: AnyTriggerSettings | None
    ) -> None:
        """The parts of camera `name` are named by `source`."""
        intake = NameIntake(name, _window(settings), self._clock)
        self._names[name] = intake
        self._readers[name] = Triggering(
            name, source, intake, stop=self._stop, clock=self._clock, noun="part ids"
        )

    def _acquisition(self, name: str, camera: Camera) -> Acquisition:
        intake: Intake = self._announced.get(name) or FrameIntake(
            name,
            self._queue,
            begin=self._announce,
            end=self._end,
            clock=self._clock,
            waits=camera.triggered,
        )
        found = Acquisition(name, camera, intake, self._queue, stop=self._stop, clock=self._clock)
        if name in self._announced and isinstance(camera, Fired) and camera.fires:
            self._announced[name].fire_by(found.fire)
        if name in self._name_products:
            self._announced[name].tell_of(partial(self._meets, found))
        return found

    def _adjust(self, product: str) -> dict[str, Future[str | None]]:
        """Have cameras set up for a product, except those whose announcements say what comes."""
        asked = {
            name: found.adjust(product)
            for name, found in self._acquisitions.items()
            if name not in self._name_products
        }
        return {name: answer for name, answer in asked.items() if answer is not None}

    def _meets(self, found: Acquisition, announcement: Announcement) -> None:
        """A part is announced: its camera is set up for what it is, before it exposes."""
        told = announcement.product or ""
        if (product := self._numbers_of_products.get(told, told)) in self._controls.products:
            found.adjust(product)

    def run(self) -> Summary:
        """Run until all cameras end, `parts` triggers have begun or `stop` is set."""
        inner: tuple[AbstractContextManager[object], ...] = (
            self._evidence,
            self.monitor,
            self._recorder,
        )
        with ExitStack() as running:
            for each in (
                *inner,
                *(() if self._made_by is None else (self._made_by,)),
                *self._readers.values(),
                *self._triggerings.values(),
                *self._acquisitions.values(),
                *self._services,
            ):
                running.enter_context(each)
            run_workers(self._queue, self._life, workers=self._workers, progress=self._progress)
        self._record.flush()
        return self._summary()

    # ---- the life of a part

    def _announce(
        self,
        camera: str,
        *,
        received: float,
        triggered_ns: int,
        part_id: str | None = None,
        source: str | None = None,
        count: int | None = None,
        product: str | None = None,
        is_dated: bool = True,
    ) -> Part | None:
        """A part has arrived: it gets its number. `None` when it is one too many."""
        with self._announcing:
            if self._triggers == self._parts:
                return None
            self._triggers += 1
            self._numbers[camera] += 1
            number = self._numbers[camera]
            if self._first is None:
                self._first = received
            # An announced part still needs its frame.
            if self._triggers == self._parts and camera not in self._announced:
                self._stop.set()
        deadline_s = self._lines[camera].deadline_s
        sequence = self._record.next_sequence(camera)
        trigger = Trigger(
            sequence=sequence,
            camera=camera,
            triggered_ns=triggered_ns,
            deadline_ns=None if deadline_s is None else triggered_ns + round(deadline_s * 1e9),
            count=count,
            number=number,
        )
        part = Part(
            trigger=trigger,
            received=received,
            part_id=part_id,
            source=source,
            product=self._product(camera, product),
            audit=chance_if_drawn(self._record.epoch, sequence, self._config.evidence.audit),
        )
        if camera in self._names and (part_id is None or camera not in self._announced):
            part.part_id = None  # what the camera calls it is not what the line does
            if is_dated:
                self._names[camera].began(part)
        elif part_id is None and camera not in self._announced:
            part.part_id = f"{self._record.epoch}-{sequence:06d}"
        self._record.expect(part)
        return part

    def _product(self, camera: str, announced: str | None) -> str | None:
        """What a part is that begins now; `None` where nobody knows."""
        if announced is not None or camera in self._name_products:
            return (
                None if announced is None else self._numbers_of_products.get(announced, announced)
            )
        if self._made_by is None:
            return self._controls.product
        return self._made.product if self._made_by.is_heard else None

    def _life(self, part: Part) -> Iterator[None]:
        """What happens to a part from the queue to the ledger; see `run_workers`."""
        part.begun = self._clock.now()
        if (problem := self._unknown(part)) is not None:
            yield
            self._end(part, State.ERROR, problem)
            return
        with self._controls.ready(part.product, part.camera).held() as in_force:
            state, reason = self._inspected(part, in_force)
        yield  # until the parts of the same camera before it have left
        part.verdict = self._verdict(part, state, reason, in_force)
        decided = self._clock.now()
        self._recorder.put(part)  # thumbnail, ledger, observers
        if part.inspection is not None:
            self._timing.add(part, decided)

    def _unknown(self, part: Part) -> str | None:
        """Why nothing may inspect a part: on a line with several products it has to be known."""
        if not self._controls.products or part.product in self._controls.products:
            return None
        if part.product is None:
            return "nobody has said what product this part is"
        return f"its product {part.product!r} is none of the products in the configuration"

    def _inspected(self, part: Part, in_force: InForce) -> tuple[State, str]:
        """Have the frame inspected, if there is time; the state as it is then, and a reason."""
        assert part.frame is not None
        if part.frame.product not in {None, part.product}:
            had = part.frame.product or "no product"
            return State.ERROR, f"the camera had the features of {had} when it exposed"
        if self._controls.paused.is_set():
            return State.DROPPED, _PAUSED
        if self._late_s(part, self._clock.now()) > 0:
            return State.TIMEOUT, "its deadline passed before its inspection began"
        try:
            part.inspection = _found(in_force.inspector, part.frame)
            return decide(part.inspection, in_force.threshold), ""
        except NoAnswerError as error:
            return State.TIMEOUT, str(error)
        except AtacError as error:
            return State.ERROR, str(error)
        except Exception as error:  # noqa: BLE001 - one part must never stop the line
            _LOG.exception("inspection of part %s failed", part.part_id)
            return State.ERROR, f"{type(error).__name__}: {error}"

    def _verdict(self, part: Part, state: State, reason: str, in_force: InForce) -> Verdict:
        """The verdict as it leaves; waiting for the parts before it may have made it late."""
        now, late_state = self._clock.now(), None
        late_s = self._late_s(part, now)
        if part.inspection is not None and late_s > 0:
            reason = f"{state} came {late_s * 1e3:.1f} ms after the deadline"
            state, late_state = State.TIMEOUT, state
        return Verdict(
            state=state,
            decided_ns=_decided_ns(part, now),
            threshold=in_force.threshold,
            reason=reason or self._unnamed(part),
            late_state=late_state,
            late_s=late_s if late_s > 0 else None,
            bundle_id=in_force.model.bundle_id,
            calibration_id=in_force.model.calibration_id,
        )

    def _unnamed(self, part: Part) -> str:
        """Why a part has no id, where parts have one."""
        announced = self._announced.get(part.camera)
        is_expected = part.camera in self._names or (announced is not None and announced.gives_ids)
        return "no part id came" if is_expected and part.part_id is None else ""

    def _late_s(self, part: Part, now: float) -> float:
        """Seconds since the deadline, negative before it; by the steady clock, as UTC may jump."""
        trigger = part.trigger
        if trigger.deadline_ns is None:
            return -float("inf")
        allowed_s = (trigger.deadline_ns - trigger.triggered_ns) / 1e9
        return now - part.received - allowed_s

    def _end(self, part: Part, state: State, reason: str) -> None:
        """A part ends without inspection."""
        now = self._clock.now()
        late_s = self._late_s(part, now)
        part.verdict = Verdict(
            state=state,
            decided_ns=_decided_ns(part, now),
            threshold=math.nan,
            reason=reason,
            late_s=late_s if late_s > 0 else None,
        )
        if self._unknown(part) is None:
            with self._controls.ready(part.product, part.camera).held() as in_force:
                part.verdict = replace(
                    part.verdict,
                    threshold=in_force.threshold,
                    bundle_id=in_force.model.bundle_id,
                    calibration_id=in_force.model.calibration_id,
                )
        self._recorder.put(part)

    # ---- what is told of it

    def _wants_thumbnail(self, part: Part) -> bool:
        return self._config.evidence.thumbnails and self._is_alarm(part)

    def _is_alarm(self, part: Part) -> bool:
        return is_alarm(part.ended.state, self._lines[part.camera].fail_safe)

    def _count(self, part: Part) -> None:
        self._ends.add(part)
        if part.product in self._controls.products:
            self._ends_of[self._place_of(part)][part.ended.state] += 1
        self._alarms += self._is_alarm(part)
        self._ended += 1
        if self._ended == self._parts:
            self._stop.set()
        self._last = self._clock.now()

    def _place_of(self, part: Part) -> str:
        """Which bundle is for this part of a product that there is."""
        product = part.product or ""
        is_own = part.camera in self._controls.products[product].cameras
        return place_name(product, part.camera if is_own else None)

    def _status(self) -> Status:
        now = self._clock.now()
        recorded = self._record.cameras()
        cameras = {
            name: CameraStatus(
                triggers=known.triggers,
                counts=known.counts,
                fault=self._camera_fault(name),
                unexpected_frames=(
                    self._announced[name].unexpected if name in self._announced else 0
                ),
                is_removed=name not in self._lines,
                deadline_s=self._lines[name].deadline_s if name in self._lines else None,
                gives_frames=(
                    name in self._acquisitions and self._acquisitions[name].fault is None
                ),
            )
            for name, known in (dict.fromkeys(self._lines, _NONE_YET) | dict(recorded)).items()
        }
        ledger = self._record.status()
        sinks = {outlet.name: outlet.status() for outlet in self._outlets}
        model = self._controls.model
        ended = [
            *([] if self._record.is_alive else ["ledger"]),
            *(outlet.name for outlet in self._outlets if not outlet.is_alive),
        ]
        return Status(
            time_ns=self._clock.utc_ns(),
            uptime_s=now - self._started,
            agent_id=self._config.agent.id,
            epoch=self._record.epoch,
            bundle_id=model.bundle_id,
            calibration_id=model.calibration_id,
            backend=model.backend(),
            threshold=self._controls.threshold.value,
            calibrated_threshold=model.threshold,
            cameras=cameras,
            latencies=self._timing.histograms(),
            sinks=sinks,
            ledger=ledger,
            faults=tuple(self._faults(cameras, sinks, ledger)),
            is_paused=self._controls.paused.is_set(),
            product=self._controls.product,
            products={
                name: ProductStatus(
                    bundle_id=one.model.bundle_id, counts=self._ends_of[name].copy()
                )
                for name, one in self._ready()
            },
            in_hand_s=self._progress.in_hand_s(),
            ended_threads=tuple(ended),
            watches={name: watch.fault for name, watch in self._watches.items()},
            fleet=next((one.fleet for one in self._services if isinstance(one, InFleet)), None),
        )

    def _camera_fault(self, name: str) -> str | None:
        found = [
            part[name].fault
            for part in (self._acquisitions, self._triggerings, self._readers)
            if name in part
        ]
        return next((fault for fault in found if fault is not None), None)

    def _faults(
        self,
        cameras: Mapping[str, CameraStatus],
        sinks: Mapping[str, SinkStatus],
        ledger: LedgerStatus,
    ) -> Iterator[str]:
        drops = self._drops.faults(cameras)
        named = {
            **{f"camera {name}": camera.fault for name, camera in cameras.items()},
            **{name: sink.fault for name, sink in sinks.items()},
            "ledger": ledger.fault,
            "product": None if self._made_by is None else self._made_by.fault,
            **{f"camera {name} ": fault for name, fault in drops.items()},
            **self._inference_faults(),
            "evidence": self._evidence.fault,
            "recorder": self._recorder.fault,
            **self._threshold_faults(),
            **{name: watch.fault for name, watch in self._watches.items()},
        }
        for name, fault in named.items():
            if fault is not None:
                yield f"{name.rstrip()}: {fault}"
        for service in self._services:
            if isinstance(service, HasFault) and (fault := service.fault) is not None:
                yield fault
        if ledger.is_discarding:
            yield _DISCARDING
        if self._controls.paused.is_set():
            yield f"line: {_PAUSED}"

    def _inference_faults(self) -> dict[str, str | None]:
        if not self._controls.products:
            return {"inference": self._controls.model.fault()}
        return {f"inference of {name}": one.model.fault() for name, one in self._ready()}

    def _threshold_faults(self) -> dict[str, str | None]:
        if not self._controls.products:
            return {"threshold": self._controls.threshold.fault}
        return {f"threshold of {name}": one.threshold.fault for name, one in self._ready()}

    def _ready(self) -> Iterator[tuple[str, Ready]]:
        """What inspects each product, and what does so at cameras with a bundle of their own."""
        for name, product in self._controls.products.items():
            yield place_name(name, None), product
            for camera, one in product.cameras.items():
                yield place_name(name, camera), one

    def _summary(self) -> Summary:
        first = self._last if self._first is None else self._first
        seconds = self._last - first
        sinks = [outlet.status() for outlet in self._outlets]
        return Summary(
            epoch=self._record.epoch,
            backend=self._controls.model.backend(),
            triggers=self._triggers,
            inspected=self._ends.inspected,
            counts=self._ends.counts,
            cameras=self._ends.cameras,
            zoomed=self._ends.zoomed,
            alarms=self._alarms,
            delivered=sum(sink.delivered for sink in sinks),
            refused=sum(sink.refused for sink in sinks),
            undelivered=sum(sink.pending for sink in sinks),
            start_up_s=first - self._started,
            seconds=seconds,
            parts_per_second=self._triggers / seconds if seconds else 0.0,
            latencies=self._timing.latencies(),
        )


def _decided_ns(part: Part, now: float) -> int:
    """By the steady clock, so that deadline and latency hold when UTC is set meanwhile."""
    return part.trigger.triggered_ns + round(max(0.0, now - part.received) * 1e9)


def _window(settings: AnyTriggerSettings | None) -> WindowSettings:
    return settings if isinstance(settings, WindowSettings) else WindowSettings(type="")


def _found(inspector: Inspector, frame: Frame) -> Inspection:
    """What is found in a frame, whose raw pixels stay as they are where that is wanted."""
    if frame.bayer is not None and isinstance(inspector, TakesBayer):
        return inspector.inspect(frame.pixels, frame.bayer)
    return inspector.inspect(visible(frame))


_NONE_YET: Final = CameraStatus(triggers=0, counts=dict.fromkeys(State, 0))


@contextmanager
def stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    """Within this context Ctrl-C, SIGTERM and a terminal that goes set `stop`.

    A second signal acts as usual. A terminal's end is ignored where `nohup` has asked for it.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, before[signal.Signals(number)])
        # In another thread, as this one may hold the event's lock right now.
        threading.Thread(target=stop.set, name="atac-stop").start()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
