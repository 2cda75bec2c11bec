"""Opens what a run needs, in the order in which it has to be there, and runs the station."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

from agent.clock import SystemClock
from agent.part import Part, is_alarm
from agent.ports import Camera, Clock, Sink, TriggerSource
from agent.record.ledger import Ledger
from agent.record.retention import Limits
from agent.registry import open_camera, open_service, open_sink, open_trigger
from agent.requests import OnDemand, Requests
from agent.services.settings import AnyServiceSettings
from agent.settings import Config
from agent.sinks.delivery import Deliverer
from agent.station.check import GoldenCheck
from agent.station.controls import Controls, Ready
from agent.station.counts import CountWatch
from agent.station.drift import DriftWatch
from agent.station.promotion import Promotion
from agent.station.recorder import Observer
from agent.station.station import Model, Station
from agent.station.status import Status
from agent.station.summary import Summary
from agent.station.threshold import Threshold
from agent.triggers.settings import AnyTriggerSettings
from engine.inspector import Inspector, TakesBayer

_LOG: Final = logging.getLogger("atac_agent.line")


def run_station(
    config: Config,
    *,
    cameras: Sequence[Camera] | None = None,
    inspector: Inspector,
    model: Model,
    served: Callable[[], Model] | None = None,
    products: Callable[[], Mapping[str, tuple[Inspector, Model]]] | None = None,
    views: Callable[[], Mapping[tuple[str, str], tuple[Inspector, Model]]] | None = None,
    parts: int | None = None,
    stop: threading.Event | None = None,
    started: float | None = None,
    observers: Sequence[Observer] = (),
    services: Sequence[AnyServiceSettings] = (),
    readers: Sequence[Callable[[Status], None]] = (),
    triggers: Mapping[str, TriggerSource] = MappingProxyType({}),
    part_ids: Mapping[str, TriggerSource] = MappingProxyType({}),
    product_source: TriggerSource | None = None,
    clock: Clock | None = None,
    may_promote: bool = False,
    config_file: Path | None = None,
) -> Summary:
    """Run until all cameras' sources end, `parts` triggers have begun or `stop` is set.

    Args:
        config: The configuration.
        cameras: Those of `config`, in its order, made with the same `stop`; `None`: they are
            opened here, and know what the ledger has recorded.
        inspector: Inspects a frame; called by `model.workers` threads at once.
        model: What inspects.
        served: Waits until `inspector` is ready and gives `model` with what serves it; it is called
            when sinks and cameras are open, so that a network loads beside them.
        products: Gives what inspects each of the products, ready; the first is in force. Called
            after `served`.
        views: The same for cameras with a bundle of their own, by product and camera.
        parts: How many triggers may begin; `None`: as many as come.
        stop: Ends the run; set with the last of `parts`, and on return.
        started: `clock.now()` when the program began.
        observers: Are told of each part, in the recording thread, once the ledger has it.
        services: Those that read the status, besides those of `config`.
        readers: Are told of each status; they must not wait.
        triggers: Trigger sources by their camera's name, in place of those that `config` names.
        part_ids: Sources of part ids, likewise.
        product_source: Says what the line makes, in place of the one that `config` names.
        clock: The time; the machine's unless a test drives it.
        may_promote: Whether requests may put another bundle in force.
        config_file: Where `config` was read from.

    Raises:
        ConfigurationError: The broker's settings or the ledger cannot be used; a camera or a
            broker that is away is waited for.
    """
    stop = stop or threading.Event()
    clock = clock or SystemClock()
    lines = config.lines

    def is_reported(part: Part) -> bool:
        return is_alarm(part.ended.state, lines[part.camera].fail_safe)

    sinks = {
        one.name: open_sink(one, agent_id=config.agent.id, is_alarm=is_reported)
        for one in config.sinks
    }
    # Before the sinks begin: a sink may be told of parts by the PLC that it delivers to.
    named = {camera.name: camera for camera in config.cameras}
    announcing = {name: camera.trigger for name, camera in named.items()}
    triggers = {**_sources(announcing, sinks, stop, clock), **triggers}
    naming = {name: camera.part_ids for name, camera in named.items()}
    part_ids = {**_sources(naming, sinks, stop, clock), **part_ids}
    if product_source is None and config.product_from is not None:
        product_source = open_trigger(config.product_from, stop, clock)
    ledger = Ledger(
        config.ledger.path,
        agent_id=config.agent.id,
        sinks=tuple(sinks.values()),
        bundle_id=model.bundle_id,
        calibration_id=model.calibration_id,
        memory_bytes=config.ledger.memory_mb * 1_000_000,
        limits=Limits(keep_ns=config.ledger.keep_ns, max_bytes=config.ledger.max_bytes),
        stop=stop,
    )
    if cameras is None:
        cameras = [
            open_camera(
                one,
                stop,
                clock=clock,
                recorded=ledger.recorded,
                takes_bayer=lambda: isinstance(inspector, TakesBayer) and inspector.takes_bayer,
                features=config.features(one.name),
            )
            for one in config.cameras
        ]
    if served is not None:
        model = served()
    ready = {} if products is None else products()
    ready_at = {} if views is None else views()
    with ledger:
        controls = Controls(
            threshold=_threshold(model, ledger),
            products={
                name: _ready(
                    one,
                    ledger,
                    cameras={
                        camera: _ready(own, ledger)
                        for (product, camera), own in ready_at.items()
                        if product == name
                    },
                )
                for name, one in ready.items()
            },
            product=ledger.product() if ready else None,
        )
        if controls.product is not None and product_source is None:
            _LOG.warning("the line begins with product %s", controls.product)
        drift, check = DriftWatch(controls, ledger.audited), GoldenCheck(config, controls)
        with ExitStack() as delivering:
            bundles = Promotion(config, ledger=ledger, controls=controls)
            delivering.enter_context(bundles)
            requests = Requests(
                ledger,
                agent_id=config.agent.id,
                threshold=controls.threshold,
                products=controls,
                products_by=None if product_source is None else "product_from",
                paused=controls.paused,
                bundles=bundles if may_promote else None,
                checks=check,
                drift=drift,
                sources={name: one for name, one in triggers.items() if isinstance(one, OnDemand)},
            )
            outlets = [
                delivering.enter_context(
                    Deliverer(
                        sinks[one.name],
                        ledger,
                        drain_s=one.drain_s,
                        requests=requests,
                        clock=clock,
                    )
                )
                for one in config.sinks
            ]
            station = Station(
                config,
                cameras=cameras,
                inspector=inspector,
                model=model,
                record=ledger,
                outlets=outlets,
                controls=controls,
                clock=clock,
                stop=stop,
                parts=parts,
                started=started,
                observers=observers,
                readers=readers,
                watches={
                    "drift": drift,
                    "check": check,
                    "counts": CountWatch(config.lines, clock.utc_ns),
                },
                triggers=triggers,
                part_ids=part_ids,
                services=[partial(open_service, one) for one in (*config.services, *services)],
                requests=requests,
                config_file=config_file,
                product_source=product_source,
            )
            drift.recount()
            summary = station.run()
        ended = [outlet.status() for outlet in outlets]
    return replace(
        summary,
        delivered=sum(sink.delivered for sink in ended),
        refused=sum(sink.refused for sink in ended),
        undelivered=sum(sink.pending for sink in ended),
        lost=ledger.lost_in_this_run,
    )


def _ready(
    opened: tuple[Inspector, Model],
    ledger: Ledger,
    cameras: Mapping[str, Ready] = MappingProxyType({}),
) -> Ready:
    inspector, model = opened
    threshold = _threshold(model, ledger)
    return Ready(inspector=inspector, model=model, threshold=threshold, cameras=cameras)


def _threshold(model: Model, ledger: Ledger) -> Threshold:
    return Threshold(
        ledger,
        calibrated=model.threshold,
        calibration_id=model.calibration_id,
        scores=model.scores,
    )


def _sources(
    settings: Mapping[str, AnyTriggerSettings | None],
    sinks: Mapping[str, Sink],
    stop: threading.Event,
    clock: Clock,
) -> dict[str, TriggerSource]:
    """The sources of `settings`, by their camera's name."""
    opened = {
        name: open_trigger(one, stop, clock, camera=name, sinks=sinks)
        for name, one in settings.items()
        if one is not None
    }
    return {name: source for name, source in opened.items() if source is not None}
