"""A status as Prometheus reads it; prometheus-client is imported here and nowhere else.

Nothing is counted here: each scrape reads the newest `Status`. Labels are names of the
configuration and states, so their number is known; no part, reason or other text is a label.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from agent.part import State
from agent.record.rows import Span, software
from agent.station.status import BOUNDS_S, CameraStatus, Histogram, SinkStatus, Status

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
_STAGES: Final = ("wait", "inspect")
_Kind = type[GaugeMetricFamily] | type[CounterMetricFamily]
_ID_CHARACTERS: Final = 12
"""Of a hash; so much of it is in file names and messages for people, too."""


class Exposition(Collector):
    """The metrics of one agent, in a registry of their own.

    Args:
        status: Gives the newest status and how old it is, in seconds.
        scrapes: Gives how many scrapes were answered and how many refused.
    """

    def __init__(
        self,
        status: Callable[[], tuple[Status, float]],
        scrapes: Callable[[], tuple[int, int]],
    ) -> None:
        self._status = status
        self._scrapes = scrapes
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """All metrics in the text format 0.0.4."""
        return generate_latest(self._registry)

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry then asks for no values before the first scrape."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Every metric of the newest status."""
        status, age_s = self._status()
        yield from _agent(status, age_s)
        yield from _cameras(status)
        yield from _latencies(status)
        yield from _sinks(status)
        yield from _ledger(status)
        scrapes = CounterMetricFamily(
            "atac_scrapes", "Requests to this address, by outcome", labels=["outcome"]
        )
        for outcome, count in zip(("answered", "refused"), self._scrapes(), strict=True):
            scrapes.add_metric([outcome], count)
        yield scrapes


def _agent(status: Status, age_s: float) -> Iterator[Metric]:
    about = {
        "agent": status.agent_id,
        "software": software(),
        "bundle": status.bundle_id[:_ID_CHARACTERS],
        "calibration": status.calibration_id[:_ID_CHARACTERS],
        "backend": status.backend,
    }
    yield InfoMetricFamily("atac_agent", "What runs here", value=about)
    yield _gauge("atac_uptime_seconds", "Since the start of the program", status.uptime_s)
    yield _gauge("atac_status_age_seconds", "How old these figures are", age_s)
    yield _gauge("atac_faults", "How many things are wrong now", len(status.faults))
    yield _gauge("atac_paused", "1 while inspection is paused by request", status.is_paused)
    yield _gauge(
        "atac_oldest_part_seconds", "For how long a part has been inspected", status.in_hand_s
    )
    watches = GaugeMetricFamily(
        "atac_watch_fault",
        "1 while the promise is broken (drift), or a required check is missing (check)",
        labels=["watch"],
    )
    for name, fault in status.watches.items():
        watches.add_metric([name], fault is not None)
    yield watches
    threshold = GaugeMetricFamily(
        "atac_threshold",
        "The score above which a part is NG: in force, and as it was calibrated",
        labels=["kind"],
    )
    threshold.add_metric(["in_force"], status.threshold)
    threshold.add_metric(["calibrated"], status.calibrated_threshold)
    yield threshold


def _cameras(status: Status) -> Iterator[Metric]:
    configured = {n: each for n, each in status.cameras.items() if not each.is_removed}
    up = GaugeMetricFamily("atac_camera_up", "1 while a camera has no fault", labels=["camera"])
    deadline = GaugeMetricFamily(
        "atac_deadline_seconds",
        "From trigger to verdict; a later one ends the part as TIMEOUT",
        labels=["camera"],
    )
    for name, camera in configured.items():
        up.add_metric([name], camera.fault is None)
        if camera.deadline_s is not None:
            deadline.add_metric([name], camera.deadline_s)
    yield up
    yield deadline
    parts = CounterMetricFamily(
        "atac_parts", "Parts of this epoch that have ended, by state", labels=["camera", "state"]
    )
    for name, camera in status.cameras.items():
        for state in State:
            parts.add_metric([name, state.value], camera.counts.get(state, 0))
    yield parts
    counts: tuple[tuple[str, str, Callable[[CameraStatus], int]], ...] = (
        ("atac_triggers", "Parts of this epoch that have begun", lambda each: each.triggers),
        (
            "atac_unexpected_frames",
            "Frames that came without a trigger",
            lambda each: each.unexpected_frames,
        ),
    )
    for metric, text, value in counts:
        family = CounterMetricFamily(metric, text, labels=["camera"])
        for name, camera in status.cameras.items():
            family.add_metric([name], value(camera))
        yield family


def _latencies(status: Status) -> Iterator[Metric]:
    """Of all cameras: what histograms of several agents have in their buckets may be added up."""
    if (seen := status.latencies.get("end_to_end")) is not None:
        yield HistogramMetricFamily(
            "atac_part_seconds",
            "From the trigger to the verdict, of inspected parts",
            buckets=_buckets(seen),
            sum_value=seen.total_s,
        )
    stages = SummaryMetricFamily(
        "atac_stage_seconds", "Waiting for the inspection, and the inspection", labels=["stage"]
    )
    for stage in _STAGES:
        if (timed := status.latencies.get(stage)) is not None:
            stages.add_metric([stage], timed.count, timed.total_s)
    yield stages


def _buckets(seen: Histogram) -> list[tuple[str, float]]:
    bounds = (*(f"{bound:g}" for bound in BOUNDS_S), "+Inf")
    return [(bound, float(n)) for bound, n in zip(bounds, accumulate(seen.counts), strict=True)]


def _sinks(status: Status) -> Iterator[Metric]:
    families: tuple[tuple[_Kind, str, str, Callable[[SinkStatus], float]], ...] = (
        (GaugeMetricFamily, "atac_sink_up", "1 while it is connected", lambda s: s.is_connected),
        (GaugeMetricFamily, "atac_sink_pending", "Deliveries that wait", lambda s: s.pending),
        (CounterMetricFamily, "atac_sink_delivered", "Deliveries taken", lambda s: s.delivered),
        (CounterMetricFamily, "atac_sink_refused", "Deliveries refused", lambda s: s.refused),
    )
    for kind, metric, text, value in families:
        family = kind(metric, text, labels=["sink"])
        for name, sink in status.sinks.items():
            family.add_metric([name], float(value(sink)))
        yield family
    requests = CounterMetricFamily(
        "atac_requests", "What others asked of the agent", labels=["sink", "outcome"]
    )
    for name, sink in status.sinks.items():
        requests.add_metric([name, "accepted"], sink.requests)
        requests.add_metric([name, "refused"], sink.requests_refused)
    yield requests


def _ledger(status: Status) -> Iterator[Metric]:
    lost = _covered(status.ledger.lost)
    yield CounterMetricFamily("atac_lost_parts", "Verdicts that could not be recorded", value=lost)
    discarded = CounterMetricFamily(
        "atac_discarded", "Parts whose message or picture made room undelivered", labels=["kind"]
    )
    for kind in ("message", "picture"):
        discarded.add_metric([kind], _covered(status.ledger.discarded.get(kind, ())))
    yield discarded


def _covered(spans: tuple[Span, ...]) -> int:
    return sum(last - first + 1 for first, last in spans)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))
