"""The line: cameras' parts are inspected in turns, and every one is accounted for.

    atac-camera, one each    main, atac-lane        atac-announcer            atac-ledger
    camera.read ─▶ trigger ─▶ handover ─▶ inspect ─▶ decide ─▶ queue ─▶ picture, messages ─▶ commit
                      └─ skipped, lost, unusable ──────────────▲                              │
                                                  broker ◀── MQTT sender ◀── outbox ◀─────────┘

Inspection never waits for a broker or a disk, and no camera for another. The handover holds two
parts of each camera, the queue eight.
"""

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter, time_ns
from types import FrameType
from typing import Final

from agent.acquisition import Acquisition, Arrival, Handover, acquiring
from agent.announcer import Announcer
from agent.evidence import Evidence
from agent.heartbeat import Heartbeat, Progress
from agent.lanes import through_lanes
from agent.ledger import Ledger
from agent.messages import Origin, health, outgoing
from agent.mqtt import Publisher, check_settings, mqtt_settings
from agent.part import State, decide
from agent.ports import Camera
from agent.requests import Requests
from agent.retention import Limits
from agent.settings import Config
from agent.tally import Summary, Tally, Timing, Troubles
from agent.threshold import Threshold
from agent.verdict import Trigger, Verdict
from engine.errors import AtacError, NoAnswerError
from engine.frame import Inspection
from engine.inspector import Inspector

_LOG: Final = logging.getLogger("atac_agent.line")


def run_line(
    config: Config,
    *,
    cameras: Sequence[Camera],
    inspector: Inspector,
    threshold: float,
    bundle_id: str = "",
    calibration_id: str = "",
    parts: int | None = None,
    stop: threading.Event | None = None,
    started: float | None = None,
    lanes: int = 1,
    watch: Callable[[Verdict], None] = lambda _verdict: None,
    inference_trouble: Callable[[], str | None] = lambda: None,
    backend: Callable[[], str] = lambda: "",
) -> Summary:
    """Run until all cameras' sources end, `parts` triggers have begun or `stop` is set.

    `cameras` are those of `config`, in its order. They should have been made with the same `stop`,
    so that their waits end too; `stop` is set with the last of `parts`, and on return. `started`
    is `perf_counter()` when the program began. `inspector` is called by `lanes` threads at once;
    the verdicts of one camera leave in the order of its parts. `watch` gets each verdict, in the
    announcer's thread, once the ledger has it; `inference_trouble` says why `inspector` gives no
    answers just now, `backend` what it runs on, by its full name. Raises `ConfigurationError` when
    the broker's settings or the ledger cannot be used; a camera or a broker that is away is waited
    for.
    """
    mqtt = mqtt_settings(config)
    check_settings(mqtt)
    stop = stop or threading.Event()
    origin = Origin(
        agent_id=config.agent.id,
        epoch="",
        bundle_id=bundle_id,
        calibration_id=calibration_id,
        template=mqtt.topics,
    )
    with Ledger(
        config.ledger.path,
        agent_id=config.agent.id,
        bundle_id=bundle_id,
        calibration_id=calibration_id,
        announce=lambda verdict, epoch: outgoing(
            replace(origin, epoch=epoch), verdict, every_part=mqtt.every_part
        ),
        memory_bytes=config.ledger.memory_mb * 1_000_000,
        limits=Limits(keep_ns=config.ledger.keep_ns, max_bytes=config.ledger.max_bytes),
    ) as ledger:
        origin = replace(origin, epoch=ledger.epoch)
        paused = threading.Event()
        current = Threshold(ledger, calibrated=threshold, calibration_id=calibration_id)
        requests = Requests(origin, ledger, allowed=mqtt.commands, threshold=current, paused=paused)
        lines = config.lines
        tally = Tally(
            ledger,
            deadlines_s={name: line.deadline_s for name, line in lines.items()},
            parts=parts,
            stop=stop,
            started=perf_counter() if started is None else started,
            backend=backend,
        )

        def end(trigger: Trigger, state: State, reason: str) -> None:
            announcer.settle(
                Verdict(
                    trigger=trigger,
                    state=state,
                    decided_ns=max(time_ns(), trigger.triggered_ns),
                    threshold=current.value,
                    reason=reason,
                )
            )

        def settled(verdict: Verdict) -> None:
            tally.add(verdict)
            evidence.offer(verdict)
            watch(verdict)

        def troubles() -> Troubles:
            return Troubles(
                cameras={name: each.trouble for name, each in acquisitions.items()},
                inference=inference_trouble(),
                broker=publisher.status.trouble,
                ledger=ledger.trouble,
                evidence=evidence.trouble,
                is_letting_go=ledger.is_letting_go,
                is_paused=paused.is_set(),
            )

        def tell_health() -> None:
            now = tally.health(publisher.status, troubles(), requests, current.both)
            publisher.publish_now(health(origin, time_ns(), now))

        evidence = Evidence(config.evidence, origin)
        arrivals = Handover(lines)
        acquisitions = {
            name: Acquisition(name, camera, arrivals, begin=tally.begin, end=end, stop=stop)
            for name, camera in zip(lines, cameras, strict=True)
        }
        announcer = Announcer(
            ledger,
            origin,
            fail_safe={name: line.fail_safe for name, line in lines.items()},
            thumbnails=config.evidence.thumbnails,
            every_part=mqtt.every_part,
            tell_health=tell_health,
            health_s=mqtt.health_s,
            troubles=troubles,
            watch=settled,
        )
        progress = Progress()

        def is_well(limit_s: float) -> bool:
            return progress.in_hand_s() < limit_s and ledger.is_alive and publisher.is_alive

        with (
            Publisher(mqtt, ledger, config.agent.id, requests) as publisher,
            evidence,
            announcer,
            acquiring(acquisitions.values()),
            Heartbeat(is_well),
        ):
            _inspect_parts(
                arrivals, inspector, current, announcer, tally.timing, paused, progress, lanes
            )
        ledger.flush()
        return tally.summary(publisher.status, alarms=announcer.alarms)


def _inspect_parts(
    arrivals: Handover,
    inspector: Inspector,
    threshold: Threshold,
    announcer: Announcer,
    timing: Timing,
    paused: threading.Event,
    progress: Progress,
    lanes: int,
) -> None:
    """The loop: receive, inspect, decide, record, time; `lanes` parts at once, in order."""

    def inspect(arrival: Arrival) -> _Outcome:
        return _inspected(arrival, inspector, threshold.value, is_paused=paused.is_set())

    def release(outcome: _Outcome) -> None:
        verdict = _verdict(outcome)
        decided = perf_counter()
        announcer.settle(verdict)
        if verdict.inspection is not None:
            received = outcome.arrival.received
            timing.add(
                verdict.inspection,
                wait=outcome.begun - received,
                end_to_end=decided - received,
            )

    through_lanes(arrivals, inspect, release, lanes=lanes, progress=progress)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Outcome:
    """What a lane found. `begun` is `perf_counter()` when the part was taken in hand."""

    arrival: Arrival
    begun: float
    threshold: float
    state: State
    reason: str = ""
    inspection: Inspection | None = None


def _inspected(
    arrival: Arrival, inspector: Inspector, threshold: float, *, is_paused: bool
) -> _Outcome:
    begun = perf_counter()
    inspection, reason = None, ""
    if is_paused:
        state, reason = State.DROPPED, "inspection is paused by request"
    elif _late_s(arrival) > 0:
        state, reason = State.TIMEOUT, "its deadline passed before its inspection began"
    else:
        try:
            inspection = inspector.inspect(arrival.frame.pixels)
            state = decide(inspection, threshold)
        except NoAnswerError as error:
            state, reason = State.TIMEOUT, str(error)
        except AtacError as error:
            state, reason = State.ERROR, str(error)
        except Exception as error:  # noqa: BLE001 - one part must never stop the line
            _LOG.exception("inspection of part %s failed", arrival.trigger.part_id)
            state, reason = State.ERROR, f"{type(error).__name__}: {error}"
    return _Outcome(
        arrival=arrival,
        begun=begun,
        threshold=threshold,
        state=state,
        reason=reason,
        inspection=inspection,
    )


def _verdict(outcome: _Outcome) -> Verdict:
    """The verdict as it leaves; waiting for the parts before it may have made it late."""
    arrival, state, reason, late_state = outcome.arrival, outcome.state, outcome.reason, None
    late_s = _late_s(arrival)
    if outcome.inspection is not None and late_s > 0:
        reason = f"{state} came {late_s * 1e3:.1f} ms after the deadline"
        state, late_state = State.TIMEOUT, state
    return Verdict(
        trigger=arrival.trigger,
        state=state,
        # By the steady clock, so that deadline and latency hold when UTC is set meanwhile.
        decided_ns=arrival.trigger.triggered_ns + round((perf_counter() - arrival.received) * 1e9),
        threshold=outcome.threshold,
        frame=arrival.frame,
        inspection=outcome.inspection,
        reason=reason,
        late_state=late_state,
    )


def _late_s(arrival: Arrival) -> float:
    """Seconds since the deadline, negative before it; by the steady clock, since UTC may jump."""
    trigger = arrival.trigger
    if trigger.deadline_ns is None:
        return -float("inf")
    allowed_s = (trigger.deadline_ns - trigger.triggered_ns) / 1e9
    return perf_counter() - arrival.received - allowed_s


@contextmanager
def stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    """Within this context Ctrl-C and SIGTERM set `stop`; a second one acts as usual."""

    def handle(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, before[signal.Signals(number)])
        # In another thread, as this one may hold the event's lock right now.
        threading.Thread(target=stop.set, name="atac-stop").start()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
