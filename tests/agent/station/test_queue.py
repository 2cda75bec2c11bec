"""The queue: what is left is taken or given back, in turns, and nobody waits for a camera's end."""

from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.station.queue import PartQueue
from tests.agent.parts import part


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["put", "replace", "offer", "take"]), max_size=30))
def test_what_is_left_is_taken_or_given_back_once_and_in_order(actions):
    parts, taken, returned, sent = PartQueue(["main"]), [], [], 0
    coming = iter(parts)
    waiting = 0
    for action in actions:
        if (action == "take" and not waiting) or (action == "put" and waiting >= 2):
            continue  # these would wait
        if action == "take":
            taken.append(next(coming).trigger.sequence)
            waiting -= 1
            continue
        sent += 1
        back = getattr(parts, action)(part(sent))
        waiting += back is None
        if back is not None:
            returned.append(back.trigger.sequence)
    parts.close()
    taken += [each.trigger.sequence for each in coming]
    assert sorted(taken + returned) == list(range(1, sent + 1))
    assert all(a < b for a, b in pairwise(taken))


@given(st.lists(st.sampled_from(["top", "side", "end", "take", "take"]), max_size=80))
def test_who_waits_is_next_after_one_of_each_other_camera(actions):
    parts = PartQueue(["top", "side", "end"])
    coming = iter(parts)
    waiting, passed = Counter(), {camera: Counter() for camera in ("top", "side", "end")}
    for action in actions:
        if action != "take":
            waiting[action] += parts.replace(part(camera=action)) is None
        elif waiting.total():
            served = next(coming).camera
            waiting[served] -= 1
            passed[served].clear()
            for other in passed.keys() - {served}:
                passed[other][served] += waiting[other] > 0
                assert passed[other][served] <= 1


def test_a_camera_s_end_leaves_the_others_theirs():
    parts = PartQueue(["top", "side"])
    assert parts.put(part(camera="top")) is None
    parts.end("top")
    late = part(2, camera="top")
    assert parts.put(late) is late
    assert parts.replace(late) is late
    assert parts.offer(late) is late
    assert parts.put(part(camera="side")) is None
    parts.end("side")
    assert [one.camera for one in parts] == ["top", "side"]


def test_eight_parts_of_a_burst_find_room():
    parts = PartQueue(["main"])
    given_back = [parts.offer(part(number)) for number in range(1, 11)]
    assert [each is None for each in given_back] == [True] * 8 + [False] * 2
