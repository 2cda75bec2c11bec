"""G10: what the promise costs: parts a second with ledger and delivery, and without.

The pictures are the demo's, and so is the network, in the child process of `agent run`; with
`--faults-bundle` also one of the size that a line has. Without means that verdicts are decided
and drawn, and then forgotten. A twelfth of the parts is NG.
"""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import agent.demo
from agent.cameras.conveyor import ConveyorCamera, ConveyorSettings
from agent.clock import SystemClock
from agent.inference.child import ChildInspector, Setup
from agent.ports import CameraContext
from agent.station.controls import Controls
from agent.station.run import run_station
from agent.station.station import Model, Station
from agent.station.threshold import Threshold
from engine.bundle import open_bundle
from engine.frame import Frame
from tests.agent.records import Forgetful
from tests.faults.belt import Belt, configured

pytestmark = pytest.mark.broker

BUNDLE = Path(agent.demo.__file__).parent / "demo_bundle"


def run_without(config, *, model, **options):
    """The station alone: nothing is kept and nothing delivered."""
    ledger = Forgetful()
    threshold = Threshold(ledger, calibrated=model.threshold, calibration_id="")
    return Station(
        config,
        model=model,
        record=ledger,
        outlets=(),
        controls=Controls(threshold=threshold),
        clock=SystemClock(),
        **options,
    ).run()


class Reel(Belt):
    """The same pictures again and again, as soon as they are wanted."""

    def __init__(self, pictures: list[np.ndarray], stop: threading.Event) -> None:
        super().__init__(1e9, stop)
        self._pictures = pictures

    def read(self) -> Frame | None:
        frame = super().read()
        return frame and replace(frame, pixels=self._pictures[frame.number % len(self._pictures)])


@pytest.mark.parametrize("every_part", [False, True], ids=["alarms", "every part"])
def test_the_promise_costs_little(broker, tmp_path, is_full, record, every_part):
    blocks, parts = (20, 400) if is_full else (1, 30)
    seen = compared(BUNDLE, broker, tmp_path, every_part, blocks, parts)
    record("g10", "every part is sent" if every_part else "alarms are sent", **seen)


def test_on_a_line_it_costs_next_to_nothing(broker, tmp_path, is_full, record, pytestconfig):
    bundle = pytestconfig.getoption("--faults-bundle", default=None)
    if bundle is None:
        pytest.skip("needs --faults-bundle, a bundle that agent train made")
    blocks, parts = (20, 40) if is_full else (1, 12)
    seen = compared(bundle, broker, tmp_path, False, blocks, parts)
    record("g10", "alarms are sent, line's network", **seen)
    if is_full:
        assert seen["ratio"] >= 0.97


def compared(folder, broker, tmp_path, every_part, blocks, parts):
    """Parts a second with and without, in blocks that take turns."""
    conveyor = ConveyorCamera(ConveyorSettings(type="conveyor", parts=64), CameraContext())
    with conveyor:
        pictures = [frame.pixels for frame in iter(conveyor.read, None)]
    rates: dict[bool, list[float]] = {True: [], False: []}
    alarms: dict[bool, int] = {True: 0, False: 0}
    delivered = 0
    setup = Setup(bundle=folder, bundle_id=open_bundle(folder).id)
    with ChildInspector(setup, deadline_s=None) as inspector:
        scores = [inspector.inspect(picture).score for picture in pictures]  # warms up, too
        threshold = float(np.quantile(scores, 11 / 12))
        for block in range(blocks):
            for promised in (True, False) if block % 2 else (False, True):
                place = tmp_path / f"{block}-{promised}"
                place.mkdir()
                stop = threading.Event()
                run = run_station if promised else run_without
                summary = run(
                    configured(place, broker.port, every_part=every_part),
                    cameras=[Reel(pictures, stop)],
                    inspector=inspector,
                    model=Model(threshold=threshold).on(inspector),
                    parts=parts,
                    stop=stop,
                )
                shutil.rmtree(place)
                assert summary.triggers == sum(summary.counts.values()) == parts
                rates[promised].append(summary.parts_per_second)
                alarms[promised] += summary.alarms
                delivered += summary.delivered
    assert alarms[True] == alarms[False] > 0
    assert delivered == 2 * alarms[True] + every_part * blocks * parts
    ratios = np.array(rates[True]) / np.array(rates[False])
    return {
        "blocks": blocks,
        "parts_a_block": parts,
        "alarms": alarms[True],
        "messages_delivered": delivered,
        "parts_per_s_with": round(float(np.median(rates[True])), 1),
        "parts_per_s_without": round(float(np.median(rates[False])), 1),
        "ratio": round(float(np.median(ratios)), 3),
        "ratios": [round(float(ratio), 3) for ratio in ratios],
    }
