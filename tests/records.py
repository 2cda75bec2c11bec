"""Parts of one's own choice, and a ledger with a sink that wants them."""

import time
from contextlib import suppress

import numpy as np

from agent.part import Part, State, Trigger, Verdict
from agent.record.outbox import Mark
from engine.frame import Box, Frame
from tests.inspections import inspection


def alarms(part):
    """What the alarms of a sink are."""
    return () if part.ended.state is State.OK else ("alarm",)


def with_thumbnails(part):
    return () if part.ended.state is State.OK else ("alarm", "thumbnail")


class Wants:
    """A sink that the ledger asks, and nobody else."""

    def __init__(self, items=alarms, name="mqtt"):
        self.items = items
        self.name = name


def begin(ledger, part_id="part", camera="main", source=None, **values):
    """A part that has begun."""
    trigger = Trigger(
        sequence=ledger.next_sequence(camera),
        camera=camera,
        **{"triggered_ns": 1, "deadline_ns": 2} | values,
    )
    part = Part(trigger=trigger, received=0.0, part_id=part_id, source=source)
    ledger.expect(part)
    return part


def end(ledger, part, state=State.OK, thumbnail=None, **values):
    """End it; says whether this was its first end."""
    part.verdict = Verdict(
        state=state, **{"decided_ns": time.time_ns(), "threshold": 1.5, "reason": ""} | values
    )
    return ledger.record(part, thumbnail)


def add(ledger, *states, thumbnail=None, **values):
    """Parts that begin and end at once."""
    for state in states:
        now = time.time_ns()
        end(ledger, begin(ledger, triggered_ns=now), state, thumbnail, **values)


def inspected(part, score=2.5):
    """The same part with a frame and two passes."""
    part.frame = Frame(
        pixels=np.zeros((48, 64), np.uint8),
        number=7,
        captured_ns=11,
        device_id="CAM1",
        block_id=70_007,
        device_ns=13,
        exposure_us=4000.0,
        trigger_count=5,
    )
    part.inspection = inspection(
        score, Box.whole(64, 48), Box(left=10, top=20, right=30, bottom=40)
    )
    return part


def settle(ledger, *waiting, refused=None, code=0):
    """A sink has taken these deliveries, or refused them."""
    ledger.settle(
        [
            Mark(id=delivery.id, time_ns=time.time_ns(), refused=refused, code=code)
            for delivery, _ in waiting
        ]
    )


def fill(folder):
    """Fill the disk of `folder` to the last block."""
    with suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
        while file.write(bytes(4096)) == 4096:
            pass
