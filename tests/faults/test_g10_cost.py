"""G10: what the promise costs: parts a second with ledger and delivery, and without.

The line is the demo's: its network in the child process of `agent run`, its pictures. Without
means that verdicts are decided, drawn and made into messages, and then forgotten.
"""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import agent.demo
import agent.line
from agent.cameras.conveyor import ConveyorCamera, ConveyorSettings
from agent.inference import ChildInspector, Recipe
from agent.line import run_line
from agent.mqtt import BrokerStatus
from calibration.record import read_calibration
from engine.bundle import open_bundle
from engine.frame import Frame
from tests.faults.belt import Belt, configured

pytestmark = pytest.mark.broker

BUNDLE = Path(agent.demo.__file__).parent / "demo_bundle"


class Forgetful:
    """A ledger that keeps nothing."""

    epoch = "0" * 12
    trouble = None
    is_alive = True
    is_letting_go = False
    pending = refused = newest_message = 0
    lost = ()

    def __init__(self, *_arguments, **_options):
        self._begun = 0
        self.let_go = {}

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass

    def next_sequence(self, _camera):
        self._begun += 1
        return self._begun

    def expect(self, trigger):
        pass

    def record(self, _verdict, _messages):
        return True

    def accounts(self):
        return {}

    def total(self):
        return self._begun

    def changed_threshold(self, _calibration_id):
        return None

    def flush(self):
        return True


class Silent:
    """A sender that sends nothing."""

    is_alive = True
    status = BrokerStatus(connected=True, trouble=None, delivered=0, refused=0, pending=0)

    def __init__(self, *_arguments):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass

    def publish_now(self, message):
        pass


class Reel(Belt):
    """The same pictures again and again, as soon as they are wanted."""

    def __init__(self, pictures: list[np.ndarray], stop: threading.Event) -> None:
        super().__init__(1e9, stop)
        self._pictures = pictures

    def read(self) -> Frame | None:
        frame = super().read()
        return frame and replace(frame, pixels=self._pictures[frame.number % len(self._pictures)])


@pytest.mark.parametrize("every_part", [False, True], ids=["alarms", "every part"])
def test_the_promise_costs_little(broker, tmp_path, monkeypatch, is_full, record, every_part):
    blocks, parts = (20, 400) if is_full else (1, 30)
    conveyor = ConveyorCamera(ConveyorSettings(type="conveyor", parts=64))
    with conveyor:
        pictures = [frame.pixels for frame in iter(conveyor.read, None)]
    bundle = open_bundle(BUNDLE)
    threshold = read_calibration(bundle, precision="fp32").calibration.threshold
    rates: dict[bool, list[float]] = {True: [], False: []}
    alarms: dict[bool, int] = {True: 0, False: 0}
    delivered = 0
    with ChildInspector(Recipe(bundle=BUNDLE), deadline_s=None) as inspector:
        for block in range(-1 if is_full else 0, blocks):  # the first of many warms up
            for promised in (True, False) if block % 2 else (False, True):
                folder = tmp_path / f"{block}-{promised}"
                folder.mkdir()
                stop = threading.Event()
                with monkeypatch.context() as patched:
                    if not promised:
                        patched.setattr(agent.line, "Ledger", Forgetful)
                        patched.setattr(agent.line, "Publisher", Silent)
                    summary = run_line(
                        configured(folder, broker.port, every_part=every_part),
                        cameras=[Reel(pictures, stop)],
                        inspector=inspector,
                        threshold=threshold,
                        parts=parts,
                        stop=stop,
                        lanes=inspector.lanes,
                    )
                shutil.rmtree(folder)
                assert summary.triggers == sum(summary.counts.values()) == parts
                if block >= 0:
                    rates[promised].append(summary.parts_per_second)
                    alarms[promised] += summary.alarms
                    delivered += summary.delivered
    ratios = np.array(rates[True]) / np.array(rates[False])
    record(
        "g10",
        "every part is sent" if every_part else "alarms are sent",
        blocks=blocks,
        parts_a_block=parts,
        alarms=alarms[True],
        messages_delivered=delivered,
        parts_per_s_with=round(float(np.median(rates[True])), 1),
        parts_per_s_without=round(float(np.median(rates[False])), 1),
        ratio=round(float(np.median(ratios)), 3),
        ratios=[round(float(ratio), 3) for ratio in ratios],
    )
    assert alarms[True] == alarms[False] > 0
    assert delivered == 2 * alarms[True] + every_part * blocks * parts
    if is_full and not every_part:
        assert np.median(ratios) >= 0.97
