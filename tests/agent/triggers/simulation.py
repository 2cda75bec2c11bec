"""A line with known truth, for the reconciler: parts, a camera and a trigger source that fail.

    python -m tests.agent.triggers.simulation 1000000

runs so many parts and prints what came of them as JSON. A picture is wrong when it shows another
part than the trigger's, an id when it is another part's.
"""

import heapq
import itertools
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from agent.part import State
from agent.ports import Announcement
from agent.triggers.reconcile import (
    Begun,
    Ended,
    Named,
    Paired,
    Reconciler,
    Unclaimed,
    Unexpected,
    Window,
)
from engine.frame import Frame

WINDOW = Window(min_s=0.020, max_s=0.060)
NOTHING = np.zeros((1, 1), np.uint8)
RATES = {
    "missed": 0.01,  # the announcement does not reach the agent
    "not ready": 0.01,  # the camera is triggered and takes no frame
    "lost": 0.01,  # the frame does not reach the agent
    "late": 0.01,  # the frame comes after its window
    "incomplete": 0.01,
    "bounce": 0.01,  # a second frame of the same part, by a trigger that nobody announced
    "pulse": 0.005,  # the camera counts a trigger that nobody announced, and takes no frame
    "free": 0.01,  # a frame without a trigger
    "no id": 0.01,
    "camera restart": 0.002,
    "count restart": 0.0005,
}


@dataclass(kw_only=True)
class Seen:
    """What came of a line's parts."""

    parts: int = 0
    announced: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    wrong_frames: int = 0
    wrong_ids: int = 0
    ended_twice: int = 0
    never_ended: int = 0
    ids: int = 0
    ids_sent: int = 0
    unexpected: int = 0
    good_frames_refused: int = 0

    def add(self, other: "Seen") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Line:
    """One camera and its trigger source. `counts`: the camera counts its triggers.

    `ids` come `with` the trigger, later by `count`, or later by their `place` between the triggers
    before and after.
    """

    def __init__(self, seed: int, *, counts: bool, ids: str, has_count: bool) -> None:
        self.rng = random.Random(seed)
        self.counts, self.ids, self.has_count = counts, ids, has_count
        self.events: list[tuple[float, int, str, tuple]] = []
        self.order = itertools.count()
        self.reconciler = Reconciler(WINDOW)
        self.seen = Seen()
        self.part_of: dict[int, int] = {}
        self.end_of: dict[int, str] = {}
        self.id_of: dict[int, str | None] = {}
        self.deliverable: set[int] = set()

    def happens(self, name: str) -> bool:
        if name in {"missed", "count restart"} and (not self.has_count or self.ids == "place"):
            return False  # without a count nothing tells what was missed
        return self.rng.random() < RATES[name]

    def add(self, at: float, what: str, *data: object) -> None:
        heapq.heappush(self.events, (at, next(self.order), what, data))

    def run(self, parts: int) -> Seen:
        """Let so many parts pass."""
        rng = self.rng
        at, count, trigger_count, number = 0.0, rng.randrange(65_000), 0, 0
        arrived, stream = 0.0, 0
        missed_since: list[int] = []
        interval, pulsed = 1.0, False
        for part in range(parts):
            last, interval = interval, rng.uniform(0.03 if self.counts else 0.09, 0.16)
            if rng.random() < 0.01:
                interval = 1.0  # the belt stops for a moment
            if self.happens("camera restart"):
                stream, number, trigger_count, arrived = stream + 1, 0, 0, at
                self.add(at, "restart", stream)
            if self.happens("count restart"):
                count = 0
                missed_since.clear()
            count = count + 1 if count < 65_535 else 0
            name = None if self.happens("no id") else f"id-{part}"
            if self.happens("missed"):
                missed_since.append(part)
            else:
                given = self.has_count and count
                here = name if self.ids == "with" else None
                told = Announcement(at=at, count=given if self.has_count else None, part_id=here)
                self.add(at, "trigger", told, part, tuple(missed_since))
                missed_since.clear()
            if name is not None and self.ids == "count":
                late = at + rng.uniform(0.0, 0.5)
                self.add(
                    late, "id", Announcement(at=late, count=count, part_id=name, is_trigger=False)
                )
            if name is not None and self.ids == "place":
                late = at + rng.uniform(0.001, interval - 0.001)
                self.add(late, "id", Announcement(at=late, part_id=name, is_trigger=False))
            if name is not None:
                self.seen.ids_sent += 1
            # The camera.
            trigger_count += 1
            was_taken = not self.happens("not ready")
            after_pulse, pulsed = pulsed, False
            if was_taken:
                number += 1
                delay = rng.uniform(0.022, 0.058)
                if self.happens("late") and not after_pulse:
                    most = 0.3 if self.counts else max(0.061, interval + 0.015)
                    delay = rng.uniform(0.061, most)
                arrived = max(arrived + 1e-4, at + delay)
                if not self.happens("lost"):
                    is_whole = not self.happens("incomplete")
                    self.add(arrived, "frame", stream, number, trigger_count, part, is_whole)
                    if is_whole and arrived - at <= WINDOW.max_s:
                        self.deliverable.add(part)
            is_apart = last > 0.12 and interval > 0.12
            if is_apart and arrived <= at + WINDOW.max_s and self.happens("bounce"):
                number, trigger_count = number + 1, trigger_count + 1
                arrived = max(arrived + 1e-4, at + 0.005 + rng.uniform(0.022, 0.058))
                if arrived < at + interval:
                    self.add(arrived, "frame", stream, number, trigger_count, part, True)
            elif arrived <= at + WINDOW.max_s and self.happens("pulse"):
                # Together with a late frame it could not be told from a camera that was not ready.
                trigger_count, pulsed = trigger_count + 1, True
            elif is_apart and was_taken and arrived < at + 0.1 and self.happens("free"):
                number, arrived = number + 1, at + 0.105
                self.add(arrived, "frame", stream, number, trigger_count, None, True)
            at += interval
            self.play(at)
        self.play(at + 10.0)
        self.do(self.reconciler.passed(at + 20.0))
        return self.judged(parts)

    def play(self, until: float) -> None:
        """Tell the reconciler what has happened by then."""
        while self.events and self.events[0][0] < until - 1.0:
            at, _, what, data = heapq.heappop(self.events)
            if self.rng.random() < 0.2:
                self.do(self.reconciler.passed(at))
            match what:
                case "trigger":
                    told, part, missed = data
                    self.do(self.reconciler.announced(told), (*missed, part))
                case "id":
                    self.do(self.reconciler.announced(data[0]))
                case "restart":
                    self.stream = data[0]
                    self.do(self.reconciler.restarted())
                case "frame":
                    stream, number, trigger_count, part, is_whole = data
                    if stream != getattr(self, "stream", 0):
                        continue  # it was on its way when the camera was restarted
                    counted = trigger_count if self.counts else None
                    if is_whole:
                        shows = Frame(
                            pixels=NOTHING,
                            number=number,
                            captured_ns=-1 if part is None else part,
                            trigger_count=counted,
                        )
                        self.do(self.reconciler.seen(shows, at))
                    else:
                        self.do(self.reconciler.spoilt(number, counted, at, "incomplete"))

    def do(self, actions: list, parts: tuple[int, ...] = ()) -> None:
        begun = [action for action in actions if isinstance(action, Begun)]
        # After its count was restarted nobody can tell what was missed before.
        for action, part in zip(reversed(begun), reversed(parts), strict=False):
            self.part_of[action.index] = part
            self.id_of[action.index] = action.announcement.part_id
        self.seen.announced += len(begun)
        for action in actions:
            match action:
                case Paired(index=index, frame=frame):
                    self.end(index, "paired")
                    self.seen.wrong_frames += frame.captured_ns != self.part_of[index]
                case Ended(index=index, state=state):
                    self.end(index, state.value)
                    assert state in {State.NO_FRAME, State.ERROR}
                case Named(index=index, part_id=part_id):
                    self.id_of[index] = part_id
                case Unexpected():
                    self.seen.unexpected += 1
                case Begun() | Unclaimed():
                    pass

    def end(self, index: int, state: str) -> None:
        self.seen.ended_twice += index in self.end_of
        self.end_of[index] = state

    def judged(self, parts: int) -> Seen:
        seen = self.seen
        seen.parts = parts
        seen.ends = Counter(self.end_of.values())
        seen.never_ended = len(self.part_of.keys() - self.end_of.keys())
        for index, part in self.part_of.items():
            known = self.id_of[index]
            seen.ids += known is not None
            seen.wrong_ids += known is not None and known != f"id-{part}"
            seen.good_frames_refused += (
                part in self.deliverable and self.end_of.get(index) != "paired"
            )
        return seen


def simulated(parts: int, seed: int) -> dict[str, Seen]:
    """So many parts for each of the lines there can be, in runs of 5000."""
    kinds = {
        "camera counts, ids with the trigger": {"counts": True, "ids": "with", "has_count": True},
        "camera counts, ids later by count": {"counts": True, "ids": "count", "has_count": True},
        "windows alone, ids with the trigger": {"counts": False, "ids": "with", "has_count": True},
        "windows alone, ids later by place": {"counts": False, "ids": "place", "has_count": False},
    }
    found = {}
    for number, (name, options) in enumerate(kinds.items()):
        found[name] = Seen()
        for run in range(0, parts // len(kinds), 5000):
            line = Line(seed + 1000 * number + run, **options)
            found[name].add(line.run(min(5000, parts // len(kinds) - run)))
    return found


def main() -> None:
    parts = int(sys.argv[1])
    began = time.perf_counter()
    found = simulated(parts, seed=1)
    sys.stdout.write(
        json.dumps(
            {
                "parts": parts,
                "rates": RATES,
                "seconds": round(time.perf_counter() - began, 1),
                "lines": {name: vars(seen) for name, seen in found.items()},
            },
            indent=2,
        )
        + "\n"
    )
    sys.exit(any(seen.wrong_frames or seen.wrong_ids for seen in found.values()))


if __name__ == "__main__":
    main()
