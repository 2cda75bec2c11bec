"""Opens what a run needs, in the order in which it has to be there, and runs the station."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import time_ns
from typing import Final

from agent.clock import SystemClock
from agent.ledger import Ledger
from agent.messages import CameraHealth, Health, Origin, health, outgoing, summary
from agent.mqtt import Publisher, mqtt_settings
from agent.part import Part, is_alarm
from agent.ports import Camera, Clock
from agent.registry import open_service
from agent.requests import Requests
from agent.retention import Limits
from agent.services.settings import AnyServiceSettings
from agent.settings import Config
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.controls import Controls
from agent.station.recorder import Observer
from agent.station.station import Model, Station
from agent.station.status import CameraStatus, Histogram, LedgerStatus, SinkStatus, Status
from agent.station.summary import Summary
from agent.station.threshold import Threshold
from agent.verdict import Trigger, Verdict
from engine.inspector import Inspector


def run_station(
    config: Config,
    *,
    cameras: Sequence[Camera],
    inspector: Inspector,
    model: Model,
    parts: int | None = None,
    stop: threading.Event | None = None,
    started: float | None = None,
    observers: Sequence[Observer] = (),
    services: Sequence[AnyServiceSettings] = (),
    readers: Sequence[Callable[[Status], None]] = (),
    clock: Clock | None = None,
) -> Summary:
    """Run until all cameras' sources end, `parts` triggers have begun or `stop` is set.

    Args:
        config: The configuration.
        cameras: Those of `config`, in its order, made with the same `stop`.
        inspector: Inspects a frame; called by `model.workers` threads at once.
        model: What inspects.
        parts: How many triggers may begin; `None`: as many as come.
        stop: Ends the run; set with the last of `parts`, and on return.
        started: `clock.now()` when the program began.
        observers: Are told of each part, in the recording thread, once the ledger has it.
        services: Those that read the status, besides those of `config`.
        readers: Are told of each status; they must not wait.
        clock: The time; the machine's unless a test drives it.

    Raises:
        ConfigurationError: The broker's settings or the ledger cannot be used; a camera or a
            broker that is away is waited for.
    """
    mqtt = mqtt_settings(config)
    stop = stop or threading.Event()
    origin = Origin(
        agent_id=config.agent.id,
        epoch="",
        bundle_id=model.bundle_id,
        calibration_id=model.calibration_id,
        template=mqtt.topics,
    )
    with Ledger(
        config.ledger.path,
        agent_id=config.agent.id,
        bundle_id=model.bundle_id,
        calibration_id=model.calibration_id,
        announce=lambda verdict, epoch: outgoing(
            replace(origin, epoch=epoch), verdict, every_part=mqtt.every_part
        ),
        memory_bytes=config.ledger.memory_mb * 1_000_000,
        limits=Limits(keep_ns=config.ledger.keep_ns, max_bytes=config.ledger.max_bytes),
    ) as ledger:
        origin = replace(origin, epoch=ledger.epoch)
        controls = Controls(
            threshold=Threshold(
                ledger, calibrated=model.threshold, calibration_id=model.calibration_id
            )
        )
        requests = Requests(
            origin,
            ledger,
            allowed=mqtt.commands,
            threshold=controls.threshold,
            paused=controls.paused,
        )
        with Publisher(mqtt, ledger, config.agent.id, requests) as publisher:
            return Station(
                config,
                cameras=cameras,
                inspector=inspector,
                model=model,
                record=_Record(ledger, origin, config, mqtt),
                outlets=(_Broker(mqtt, publisher, origin, ledger, requests),),
                controls=controls,
                clock=clock or SystemClock(),
                stop=stop,
                parts=parts,
                started=started,
                observers=observers,
                readers=readers,
                services=[partial(open_service, one) for one in (*config.services, *services)],
            ).run()


class _Record:
    """The ledger, as the station asks for it."""

    def __init__(self, ledger: Ledger, origin: Origin, config: Config, mqtt: MqttSettings) -> None:
        self._ledger = ledger
        self._origin = origin
        self._lines = config.lines
        self._every_part = mqtt.every_part

    @property
    def epoch(self) -> str:
        return self._ledger.epoch

    @property
    def is_alive(self) -> bool:
        return self._ledger.is_alive

    def next_sequence(self, camera: str) -> int:
        return self._ledger.next_sequence(camera)

    def expect(self, part: Part) -> None:
        self._ledger.expect(_trigger(part))

    def record(self, part: Part, thumbnail: bytes | None) -> None:
        verdict = _verdict(part)
        if is_alarm(part.ended.state, self._lines[part.camera].fail_safe):
            messages = outgoing(self._origin, verdict, thumbnail, every_part=self._every_part)
        else:
            messages = [summary(self._origin, verdict)] if self._every_part else []
        self._ledger.record(verdict, messages)

    def cameras(self) -> Mapping[str, CameraStatus]:
        return {
            name: CameraStatus(triggers=account.triggers, counts=account.counts)
            for name, account in self._ledger.accounts().items()
        }

    def status(self) -> LedgerStatus:
        return LedgerStatus(
            fault=self._ledger.trouble,
            lost=self._ledger.lost,
            discarded={str(kind): spans for kind, spans in self._ledger.let_go.items()},
            is_discarding=self._ledger.is_letting_go,
        )

    def flush(self) -> bool:
        return self._ledger.flush()


class _Broker:
    """The sender, as the station asks for it; it publishes health every `health_s`."""

    name: Final = "broker"

    def __init__(
        self,
        settings: MqttSettings,
        publisher: Publisher,
        origin: Origin,
        ledger: Ledger,
        requests: Requests,
    ) -> None:
        self._settings = settings
        self._publisher = publisher
        self._origin = origin
        self._ledger = ledger
        self._requests = requests
        self._told: Status | None = None

    @property
    def is_alive(self) -> bool:
        return self._publisher.is_alive

    def status(self) -> SinkStatus:
        now = self._publisher.status
        return SinkStatus(
            is_connected=now.connected,
            fault=now.trouble,
            pending=now.pending,
            delivered=now.delivered,
            refused=now.refused,
            requests=self._requests.accepted,
            requests_refused=self._requests.refused,
        )

    def report(self, status: Status) -> None:
        before = self._told
        # What is read once a second is due up to a tenth of a second early.
        if before is not None and (
            status.uptime_s - before.uptime_s < self._settings.health_s - 0.1
            and status.faults == before.faults
            and not status.is_last
        ):
            return
        self._told = status
        recent = status.latencies["end_to_end"]
        ended, elapsed_s = status.ended, 0.0
        if before is not None:
            recent = recent.since(before.latencies["end_to_end"])
            ended, elapsed_s = ended - before.ended, status.uptime_s - before.uptime_s
        now = self._publisher.status
        named = {"ledger: ", "broker: ", *(f"camera {name}: " for name in status.cameras)}
        snapshot = Health(
            uptime_s=status.uptime_s,
            cameras={
                name: CameraHealth(
                    triggers=each.triggers,
                    counts=each.counts,
                    trouble=each.fault,
                    is_removed=each.is_removed,
                )
                for name, each in status.cameras.items()
            },
            parts_per_second=ended / elapsed_s if elapsed_s else 0.0,
            backend=status.backend,
            latency_p50_ms=_milliseconds(recent, 0.5),
            latency_p99_ms=_milliseconds(recent, 0.99),
            threshold=status.threshold,
            calibrated_threshold=status.calibrated_threshold,
            waiting=now.pending,
            delivered=now.delivered,
            refused=self._ledger.refused,
            lost=status.ledger.lost,
            requests=self._requests.accepted,
            requests_refused=self._requests.refused,
            let_go=self._ledger.let_go,
            broker_trouble=status.sinks["broker"].fault,
            ledger_trouble=status.ledger.fault,
            other_troubles=tuple(
                fault for fault in status.faults if not fault.startswith(tuple(named))
            ),
        )
        self._publisher.publish_now(health(self._origin, time_ns(), snapshot))


def _milliseconds(recent: Histogram, share: float) -> float | None:
    seconds = recent.quantile(share)
    return None if seconds is None else seconds * 1e3


def _trigger(part: Part) -> Trigger:
    trigger = part.trigger
    return Trigger(
        sequence=trigger.sequence,
        camera=trigger.camera,
        part_id=part.part_id or "",
        triggered_ns=trigger.triggered_ns,
        deadline_ns=trigger.deadline_ns,
    )


def _verdict(part: Part) -> Verdict:
    verdict = part.ended
    return Verdict(
        trigger=_trigger(part),
        state=verdict.state,
        decided_ns=verdict.decided_ns,
        threshold=verdict.threshold,
        frame=part.frame,
        inspection=part.inspection,
        reason=verdict.reason,
        late_state=verdict.late_state,
    )
