"""The reconciler: what can go wrong between trigger, camera and part id, one by one and at once."""

import numpy as np
import pytest

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
from tests.agent.triggers.simulation import Seen, simulated


class Line:
    """Tells a reconciler what happens, in milliseconds, and keeps what becomes of each trigger."""

    def __init__(self):
        self.reconciler = Reconciler(Window(min_s=0.010, max_s=0.050))
        self.actions = []

    def trigger(self, at, count=None, part_id=None):
        told = Announcement(at=at / 1e3, count=count, part_id=part_id)
        self.actions += self.reconciler.announced(told)

    def part_id(self, at, part_id, count=None):
        told = Announcement(at=at / 1e3, count=count, part_id=part_id, is_trigger=False)
        self.actions += self.reconciler.announced(told)

    def frame(self, at, number, count=None):
        frame = Frame(
            pixels=np.zeros((1, 1), np.uint8), number=number, captured_ns=0, trigger_count=count
        )
        self.actions += self.reconciler.seen(frame, at / 1e3)

    def spoilt(self, at, number, count=None):
        self.actions += self.reconciler.spoilt(number, count, at / 1e3, "it is incomplete")

    def passed(self, at):
        self.actions += self.reconciler.passed(at / 1e3)
        return self

    @property
    def ends(self):
        """What each trigger got: its frame's number, or state and reason."""
        found = {}
        for action in self.actions:
            match action:
                case Paired(index=index, frame=frame):
                    assert index not in found
                    found[index] = frame.number
                case Ended(index=index, state=state, reason=reason):
                    assert index not in found
                    found[index] = f"{state}: {reason}"
        begun = [action.index for action in self.actions if isinstance(action, Begun)]
        assert begun == list(range(len(begun)))
        assert set(found) <= set(begun)
        return [found.get(index) for index in begun]

    @property
    def ids(self):
        found = {}
        for action in self.actions:
            match action:
                case Begun(index=index, announcement=told):
                    found[index] = told.part_id
                case Named(index=index, part_id=part_id):
                    found[index] = part_id
        return [found[index] for index in sorted(found)]

    @property
    def unexpected(self):
        return [action.reason for action in self.actions if isinstance(action, Unexpected)]


@pytest.fixture
def line():
    """A camera that counts its triggers, after one part that went well."""
    line = Line()
    line.trigger(0, count=1)
    line.frame(30, 0, count=1)
    return line


def test_a_frame_in_its_window_belongs_to_its_trigger(line):
    line.trigger(100, count=2)
    line.frame(130, 1, count=2)
    assert line.ends == [0, 1]
    assert line.unexpected == []
    assert line.reconciler.due is None
    assert line.reconciler.fault is None


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (1, "the camera was not ready"),
        (3, "its frame was lost on the way"),
        (2, "the camera was not ready, or its frame was lost on the way"),
    ],
)
def test_triggers_that_the_camera_counted_and_gave_no_frame_for(line, number, why):
    """Two of three parts have no frame; the frame's number tells why."""
    for at, count in ((100, 2), (200, 3), (300, 4)):
        line.trigger(at, count=count)
        if count == 3:
            line.passed(201)
    line.frame(330, number, count=4)
    assert line.ends[0] == 0
    assert line.ends[3] == number
    for end in line.ends[1:3]:
        assert end.startswith("NO_FRAME: ")
        assert why in end or "within 50 ms" in end


def test_a_frame_nobody_triggered_is_given_to_no_part(line):
    line.trigger(100, count=2)
    line.frame(130, 1, count=1)
    line.frame(140, 2, count=2)
    assert line.ends == [0, 2]
    assert line.unexpected == ["the camera was not triggered"]
    assert line.reconciler.fault == "the camera gives frames without a trigger"


def test_a_trigger_without_a_frame_ends_with_its_window_and_a_late_frame_shifts_nothing(line):
    line.trigger(100, count=2)
    assert line.reconciler.due == pytest.approx(0.250)
    line.passed(249)
    assert line.ends[1] is None
    line.passed(251)
    line.frame(252, 1, count=2)
    line.trigger(300, count=3)
    line.frame(320, 2, count=3)
    assert line.ends == [0, "NO_FRAME: no frame came within 50 ms of its trigger", 2]
    assert line.unexpected == ["it came too late for its trigger"]


def test_a_frame_so_late_that_it_fits_the_next_trigger_is_not_given_to_it(line):
    line.trigger(100, count=2)
    line.trigger(200, count=3)
    line.frame(220, 1, count=2)  # of the trigger at 100
    line.frame(230, 2, count=3)
    line.passed(1000)
    assert line.ends[0::2] == [0, 2]
    assert line.ends[1].startswith("NO_FRAME")


@pytest.mark.parametrize("counts", [(None, None), (2, 3)])
def test_the_second_frame_of_a_trigger_is_unexpected(line, counts):
    if counts[0] is None:
        line = Line()
        line.trigger(0)
        line.frame(30, 0)
    line.trigger(100)
    line.frame(120, 1, count=counts[0])
    line.frame(125, 2, count=counts[1])
    line.trigger(300)
    line.frame(330, 3, count=counts[1] and counts[1] + 1)
    line.passed(1000)
    assert line.ends == [0, 1, 3]
    assert len(line.unexpected) == 1


def test_an_incomplete_frame_ends_its_part_as_error(line):
    line.trigger(100, count=2)
    line.spoilt(130, 1, count=2)
    line.trigger(200, count=3)
    line.frame(230, 2, count=3)
    assert line.ends == [0, "ERROR: it is incomplete", 2]


def test_a_camera_that_was_restarted_owes_nothing_and_counts_anew(line):
    for at, number in ((100, 1), (200, 2)):
        line.trigger(at, count=number + 1)
        line.frame(at + 30, number, count=number + 1)
    line.trigger(300, count=4)
    line.frame(320, 0, count=1)
    line.trigger(400, count=5)
    line.frame(430, 1, count=2)
    assert line.ends[3:] == ["NO_FRAME: the camera was restarted", 1]
    assert line.unexpected == ["the first frame after the camera was restarted"]
    assert all(isinstance(line.ends[index], int) for index in (0, 1, 2))


def test_a_reconnected_camera_does_the_same_although_its_numbers_do_not_fall(line):
    line.trigger(100, count=2)
    line.actions += line.reconciler.restarted()
    line.trigger(200, count=3)
    line.frame(230, 9_000, count=17)
    assert line.ends == [0, "NO_FRAME: the camera was restarted", 9_000]


def test_triggers_that_the_agent_did_not_hear_of_are_parts_without_a_frame(line):
    line.trigger(100, count=4)
    line.frame(130, 3, count=4)
    assert line.ends == [0, *["NO_FRAME: its trigger was not seen"] * 2, 3]
    assert line.reconciler.fault == "2 triggers were not seen before count 4"


def test_the_frame_of_a_trigger_that_was_not_heard_is_given_to_nobody(line):
    line.frame(90, 1, count=2)
    line.passed(300)
    line.trigger(400, count=3)
    line.frame(430, 2, count=3)
    assert line.ends == [0, "NO_FRAME: its trigger was not seen", 2]
    assert line.unexpected == ["nobody announced a part"]


@pytest.mark.parametrize("count", [1, 500_000])
def test_a_count_that_falls_or_leaps_begins_anew(line, count):
    line.trigger(100, count=7)
    line.frame(130, 6, count=7)
    line.trigger(200, count=count)
    line.frame(230, 7, count=8)
    assert len(line.ends) == 8
    assert line.ends[-1] == 7
    assert line.reconciler.fault == f"the trigger's count went from 7 to {count}"


@pytest.mark.parametrize("after", [0, 1])
def test_a_count_of_16_bits_may_wrap(after):
    line = Line()
    for at, count in ((0, 65_535), (100, after), (200, after + 1)):
        line.trigger(at, count=count)
        line.frame(at + 30, at // 100)
    assert line.ends == [0, 1, 2]
    assert line.reconciler.fault is None


def test_a_trigger_that_is_told_twice_is_one_part(line):
    line.trigger(100, count=2)
    line.trigger(101, count=2, part_id="b")
    line.frame(130, 1, count=2)
    assert line.ends == [0, 1]
    assert line.ids == [None, "b"]


def test_without_a_count_two_triggers_that_fit_get_no_frame():
    line = Line()
    line.trigger(0)
    line.trigger(20)
    line.frame(40, 0)
    line.passed(500)
    assert all(end.startswith("NO_FRAME") for end in line.ends)
    assert "make the window narrower" in line.reconciler.fault


def test_with_a_count_two_triggers_that_fit_get_theirs(line):
    line.trigger(100, count=2)
    line.trigger(120, count=3)
    line.frame(140, 1, count=2)
    line.frame(150, 2, count=3)
    assert line.ends == [0, 1, 2]


def test_one_lost_bar_code_leaves_one_part_without_id_and_shifts_none():
    for with_count in (False, True):
        line = Line()
        for number in range(1, 6):
            line.trigger(100 * number, count=number if with_count else None)
            if number != 3:
                line.part_id(
                    100 * number + 60, f"part {number}", count=number if with_count else None
                )
        assert line.ids == ["part 1", "part 2", None, "part 4", "part 5"]


def test_an_id_may_come_before_its_trigger_or_long_after_where_it_has_a_count():
    line = Line()
    line.part_id(50, "one", count=2)  # no trigger has come: nobody knows what is before it
    line.trigger(100, count=1)
    line.trigger(200, count=2)
    line.part_id(700, "first", count=1)
    assert line.ids == ["first", "one"]
    line.part_id(800, "?", count=0)
    assert [action for action in line.actions if isinstance(action, Unclaimed)] == [Unclaimed("?")]


def test_of_two_ids_for_one_part_neither_is_believed():
    line = Line()
    line.trigger(100, part_id="one")
    line.part_id(110, "two")
    assert line.ids == [None]
    assert "two part ids" in line.reconciler.fault


def test_an_extra_trigger_of_the_camera_shifts_nothing(line):
    """The camera counts a bounce while it is not ready: its next count is one too many."""
    for number in (2, 3, 4):
        line.trigger(100 * number, count=number)
        line.frame(100 * number + 30, number - 1, count=number + (number > 2))
        line.passed(100 * number + 95)
    line.passed(2000)
    assert [end for end in line.ends if isinstance(end, int)] == [0, 1, 2, 3]


def test_at_the_end_what_is_open_has_no_frame(line):
    line.trigger(100, count=2)
    line.actions += line.reconciler.ended()
    assert line.ends == [0, "NO_FRAME: the agent was stopping"]


def checked(found: dict[str, Seen]) -> None:
    """No part has another part's picture or id, and every trigger ends once."""
    for name, seen in found.items():
        assert (seen.wrong_frames, seen.wrong_ids) == (0, 0), name
        assert (seen.ended_twice, seen.never_ended) == (0, 0), name
        assert sum(seen.ends.values()) == seen.announced
        assert seen.good_frames_refused <= 0.03 * seen.parts
        assert seen.ids >= 0.98 * seen.ids_sent


def test_no_part_gets_another_s_frame_or_id():
    """Twenty thousand parts; `make triggers` runs a million."""
    checked(simulated(20_000, seed=1))
