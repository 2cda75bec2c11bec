"""What the line's screen counts: history and status tell of one moment."""

import pytest

from agent.part import State
from agent.services.page.history import History, score_bin
from agent.services.page.now import Now, shift_began_ns
from tests.agent.events import event

DAY = 86_400.0


def status(time_ns, **counts):
    return {"time_ns": time_ns, "cameras": {"main": {"triggers": 9, "counts": counts}}}


@pytest.fixture
def history(tmp_path):
    opened = History(tmp_path / "history.sqlite", near=0.1)
    yield opened
    opened.close()


def part(sequence, at_s, **changes):
    times = {"triggered_ns": round(at_s * 1e9), "decided_ns": round(at_s * 1e9)}
    return event(sequence=sequence, **times, **changes)


def test_a_shift_counts_what_the_status_counts(history):
    began_s = shift_began_ns(10 * DAY + 5, ("00:00", "12:00")) / 1e9
    history.add(part(1, began_s - 5))
    history.add(part(2, began_s + 1))
    now = Now(history, ("00:00", "12:00"), clock=lambda: began_s + 100)
    now.told(status(round((began_s + 50) * 1e9), OK=3))
    assert now.shift()[1].total() == 1
    now.add(part(3, began_s + 40))
    now.add(part(4, began_s + 60))  # the status does not know it yet
    now.told(status(round((began_s + 55) * 1e9), OK=3))
    assert now.shift()[1].total() == 2
    now.told(status(round((began_s + 65) * 1e9), OK=4))
    assert now.shift()[1].total() == 3


def test_a_ledger_of_this_shift_is_this_shift(history):
    now = Now(history, ("00:00",), clock=lambda: 10 * DAY)
    now.told(status(1, OK=870, NG=18))
    now.add(part(1, 10 * DAY))
    assert now.shift()[1] == now.counts() == {"OK": 870, "NG": 18}


def test_a_shift_begins_at_its_local_time():
    for shifts in (("06:00", "14:00", "22:00"), ("06:00",)):
        for hour in range(48):
            now = 20 * DAY + hour * 3600
            began = shift_began_ns(now, shifts) / 1e9
            assert now - DAY < began <= now


def test_a_history_that_cannot_be_read_is_begun_again(tmp_path):
    path = tmp_path / "history.sqlite"
    path.write_bytes(b"no history at all, but something long enough" * 100)
    opened = History(path, near=0.1)
    opened.add(part(1, 10 * DAY))
    opened.flush()
    assert opened.part(event().epoch, 1).sequence == 1
    assert opened.cursor() == (event().epoch, 1)
    opened.add(part(1, 10 * DAY))  # told twice
    opened.flush()
    assert opened.counts_since(0).total() == 1
    opened.close()


@pytest.mark.parametrize("threshold", [2.0, -2.0, 0.0])
def test_the_upper_half_of_the_bins_is_above_the_threshold(threshold):
    bins = [score_bin(threshold + step / 10, threshold) for step in range(-100, 101)]
    assert bins == sorted(bins)
    assert {*bins} <= {*range(40)}
    assert score_bin(threshold, threshold) == 19
    assert score_bin(threshold + 1e-9, threshold) == 20


def test_of_a_quick_line_parts_with_a_picture_are_shown_and_rejected_ones_come_one_by_one(history):
    steady = [100.0]
    now = Now(history, ("00:00",), clock=lambda: 10 * DAY, steady=lambda: steady[0])
    for second, triggers in ((1, 0), (2, 50)):
        now.told(
            {"time_ns": second * 10**9, "cameras": {"main": {"triggers": triggers, "counts": {}}}}
        )
    assert now.is_quick
    now.pictured(event().epoch, 3)  # before the feed tells of it
    for number in range(1, 7):
        now.add(part(number, 10 * DAY, state=State.NG if number % 2 else State.OK))
    now.pictured(event().epoch, 5)
    assert [seen.sequence for seen in now.tiles()] == [5, 3]
    assert [seen.sequence for seen in now.rejected()] == [1]
    steady[0] += 1.0
    assert [seen.sequence for seen in now.rejected()] == [3, 1]
    assert [seen.sequence for seen in now.newest(2)] == [6, 5]
