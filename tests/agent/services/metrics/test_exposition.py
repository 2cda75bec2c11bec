"""What a scrape holds: the status, in few series, none of which is named by a part or a reason."""

from prometheus_client.parser import text_string_to_metric_families

from agent.services.metrics.exposition import Exposition
from agent.station.status import BOUNDS_S, Histogram, LedgerStatus, SinkStatus
from tests.agent.statuses import camera_status, status

BUSY = status(
    cameras={"top": camera_status(OK=90, NG=7, ERROR=3)},
    sinks={
        "mqtt": SinkStatus(
            is_connected=True, pending=4, delivered=12, refused=1, requests=2, requests_refused=3
        )
    },
    latencies={
        "end_to_end": Histogram(counts=(0, 1, 2, *[0] * (len(BOUNDS_S) - 3), 5), total_s=60.5),
        "wait": Histogram(counts=(8, *[0] * len(BOUNDS_S)), total_s=0.004),
    },
    ledger=LedgerStatus(lost=((5, 9), (20, 20)), discarded={"picture": ((1, 3),)}),
    threshold=2.5,
    faults=("camera side: part-17 is gone",),
    is_paused=True,
    watches={"drift": "scores have changed", "check": None},
)


def scraped(shown):
    """The samples of a scrape, by name and labels."""
    text = Exposition(lambda: (shown, 0.5), lambda: (3, 1)).text().decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_scrape_holds_the_status():
    seen = scraped(BUSY)
    assert seen["atac_parts_total", ("camera", "top"), ("state", "NG")] == 7
    assert seen["atac_triggers_total", ("camera", "top")] == 100
    assert seen["atac_camera_up", ("camera", "top")] == 1
    assert seen["atac_sink_pending", ("sink", "mqtt")] == 4
    assert seen["atac_requests_total", ("outcome", "refused"), ("sink", "mqtt")] == 3
    assert seen["atac_lost_parts_total",] == 6
    assert seen["atac_discarded_total", ("kind", "picture")] == 3
    assert seen["atac_threshold", ("kind", "in_force")] == 2.5
    assert seen["atac_threshold", ("kind", "calibrated")] == 2.0
    assert seen["atac_faults",] == seen["atac_paused",] == 1
    assert seen["atac_status_age_seconds",] == 0.5
    assert seen["atac_watch_fault", ("watch", "drift")] == 1
    assert seen["atac_watch_fault", ("watch", "check")] == 0
    assert seen["atac_stage_seconds_count", ("stage", "wait")] == 8
    assert seen["atac_scrapes_total", ("outcome", "refused")] == 1


def test_the_latencies_of_several_agents_can_be_added_up():
    """Buckets are cumulative, and every agent has the same bounds."""
    seen = scraped(BUSY)
    buckets = {name[1][1]: n for name, n in seen.items() if name[0] == "atac_part_seconds_bucket"}
    assert [float(bound) for bound in buckets] == [*BOUNDS_S, float("inf")]
    assert list(buckets.values()) == [0, 1, *[3] * (len(BOUNDS_S) - 2), 8]
    assert seen["atac_part_seconds_count",] == 8
    assert seen["atac_part_seconds_sum",] == 60.5


def test_there_are_few_series_and_each_camera_and_sink_adds_a_known_number():
    one = status(cameras={"a": camera_status(OK=1)}, sinks={"mqtt": SinkStatus(is_connected=False)})
    two = status(cameras={"a": camera_status(OK=1), "b": camera_status(OK=1)}, sinks=one.sinks)
    assert len(scraped(one)) + 2 <= 60  # and two watches
    assert len(scraped(two)) - len(scraped(one)) == 9  # and a deadline, where there is one
    assert len(scraped(status(sinks={}))) == len(scraped(one)) - 6


def test_neither_parts_nor_reasons_are_labels():
    labels = {name for sample in scraped(BUSY) for name, _ in sample[1:]}
    assert labels == {
        *("agent", "backend", "bundle", "calibration", "software"),
        *("camera", "state", "sink", "kind", "stage", "outcome", "le", "watch"),
    }
    assert not [sample for sample in scraped(BUSY) if "part-17" in str(sample)]


def test_a_name_may_hold_whatever_can_be_printed():
    name = 'to"p\\ {x="µ"}'
    assert (
        scraped(status(cameras={name: camera_status(OK=2)}))[
            "atac_parts_total", ("camera", name), ("state", "OK")
        ]
        == 2
    )
