"""The handshake: its signals one by one, and that no timing makes a result another part's."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.plc.blocks import (
    AGENT_MAP,
    PLC_MAP,
    AgentBlock,
    Condition,
    PlcBlock,
    ResultCode,
    agent_block,
    agent_bytes,
    agent_registers,
    plc_block,
    plc_bytes,
    plc_registers,
    thousandths,
    words,
)
from agent.plc.handshake import MOST_HELD, Announced, Handshake, Result, Settled
from tests.agent.plc.simulation import STRESS, World

GOOD = Result(code=ResultCode.OK, score=300, threshold=500)


class Pair:
    """A handshake and the PLC's signals, on a clock that a test moves."""

    def __init__(self, **options):
        self.handshake = Handshake(**options)
        self.now = 100.0
        self.plc = PlcBlock(session=7, trigger_enable=True)

    def tell(self, after_s=0.01, **signals):
        """The PLC writes; what follows."""
        self.now += after_s
        beat = self.plc.heartbeat + 1
        self.plc = replace(self.plc, **{"heartbeat": beat} | signals)
        return self.handshake.heard(self.plc, self.now)

    def begin(self):
        """Both are in session 8."""
        self.tell()
        self.tell(session=8)

    def trigger(self, count, part_id=""):
        actions = self.tell(trigger=True, count=count, part_id=part_id)
        self.tell(trigger=False)
        return actions

    def offer(self, token, result=GOOD):
        return self.handshake.offer(token, result, self.now)

    @property
    def block(self) -> AgentBlock:
        return self.handshake.block(self.now)

    def read(self) -> AgentBlock:
        """The PLC reads twice: ResultsValid comes with the second."""
        self.handshake.seen(self.block)
        return self.block


@pytest.fixture
def pair():
    made = Pair()
    made.begin()
    return made


def test_an_agent_that_starts_waits_for_another_session():
    pair = Pair()
    pair.tell()
    assert pair.block.session == 0
    assert pair.block.condition is Condition.NO_SESSION
    pair.tell(trigger=True)
    assert not pair.block.trigger_ack
    pair.tell(session=8, trigger=False)
    assert (pair.block.session, pair.block.ready) == (8, True)


def test_a_trigger_is_taken_once_and_acknowledged_until_it_falls(pair):
    (announced,) = pair.tell(trigger=True, count=3, part_id="a")
    assert announced == Announced(token=1, at=pair.now, count=3, part_id="a")
    assert pair.block.trigger_ack
    assert pair.block.busy
    assert pair.tell() == []
    pair.tell(trigger=False)
    assert not pair.block.trigger_ack


def test_a_result_is_laid_first_and_valid_once_it_was_seen(pair):
    pair.trigger(3, "a")
    pair.offer(1)
    laid = pair.block
    assert (laid.count, laid.part_id, laid.score, laid.threshold) == (3, "a", 300, 500)
    assert not any((laid.results_valid, laid.ok, laid.ng))
    valid = pair.read()
    assert valid.results_valid
    assert valid.ok
    assert not valid.ng


def test_an_older_block_that_was_seen_makes_nothing_valid(pair):
    before = pair.block
    pair.trigger(3)
    pair.offer(1)
    pair.handshake.seen(before)
    assert not pair.block.results_valid


def test_a_result_stays_until_it_is_acknowledged_and_the_next_waits_for_the_end_of_that(pair):
    for count in (1, 2):
        pair.trigger(count)
        pair.offer(count)
    assert pair.read().count == 1
    pair.tell(after_s=60)
    assert pair.block.results_valid
    assert pair.tell(results_ack=True) == [Settled(token=1)]
    assert not pair.block.results_valid
    assert pair.read().count == 1
    pair.tell(results_ack=False)
    assert pair.read().count == 2
    assert pair.block.results_valid


def test_results_come_in_the_order_of_the_triggers(pair):
    pair.trigger(1)
    pair.trigger(2)
    pair.offer(2)
    assert not pair.read().results_valid
    pair.offer(1)
    assert pair.read().count == 1


@pytest.mark.parametrize(
    ("code", "ok", "ng", "error"),
    [
        (ResultCode.OK, True, False, False),
        (ResultCode.NG, False, True, False),
        (ResultCode.TIMEOUT, False, True, True),
        (ResultCode.NO_FRAME, False, True, True),
        (ResultCode.ERROR, False, True, True),
    ],
)
def test_what_is_not_ok_is_ng_and_what_was_not_inspected_is_an_error_too(pair, code, ok, ng, error):
    pair.trigger(1)
    pair.offer(1, replace(GOOD, code=code))
    block = pair.read()
    assert (block.ok, block.ng, block.error, block.code) == (ok, ng, error, code)


def test_a_result_that_is_not_there_when_it_is_due_is_ng_and_late():
    pair = Pair(due_s=0.5)
    pair.begin()
    pair.trigger(1)
    pair.tell(after_s=0.6)
    block = pair.read()
    assert (block.ok, block.ng, block.error, block.late) == (False, True, True, True)
    assert block.code is ResultCode.LATE
    (settled,) = pair.offer(1)
    assert "after it was due" in settled.refused
    pair.tell(results_ack=True)
    assert "after it was due" in pair.offer(1)[0].refused


def test_a_good_result_that_the_plc_can_only_read_late_is_ng():
    pair = Pair(due_s=0.5)
    pair.begin()
    for count in (1, 2):
        pair.trigger(count)
        pair.offer(count)
    pair.read()
    pair.tell(after_s=1, results_ack=True)
    pair.tell(results_ack=False)
    block = pair.read()
    assert (block.count, block.ok, block.ng, block.late) == (2, False, True, True)
    assert block.late_ms > 400


def test_a_verdict_that_came_after_its_deadline_is_late(pair):
    pair.trigger(1)
    pair.offer(1, replace(GOOD, code=ResultCode.TIMEOUT, late_s=0.25))
    block = pair.read()
    assert (block.ng, block.error, block.late, block.late_ms) == (True, True, True, 250)


@pytest.mark.parametrize("unready", [Condition.PAUSED, Condition.FAULT])
def test_ready_falls_with_the_agent_s_trouble_and_a_trigger_is_missed(pair, unready):
    pair.handshake.unready = unready
    assert not pair.block.ready
    assert pair.block.condition is unready
    assert pair.tell(trigger=True, count=1) == []
    assert pair.block.missed_trigger
    assert not pair.block.trigger_ack
    pair.handshake.unready = None
    assert pair.tell() == []
    assert pair.block.missed_trigger
    pair.tell(trigger=False)
    assert not pair.block.missed_trigger
    assert pair.block.missed == 1


def test_ready_falls_two_seconds_after_the_last_heartbeat_and_comes_back_with_it(pair):
    pair.now += 1.9
    assert pair.block.ready
    pair.now += 0.2
    assert pair.block.condition is Condition.NO_HEARTBEAT
    pair.tell()
    assert pair.block.ready


def test_with_eight_results_held_the_agent_is_not_ready_and_says_overrun(pair):
    for count in range(1, MOST_HELD + 1):
        assert pair.block.ready
        pair.trigger(count)
        pair.offer(count)
    assert pair.block.overrun
    assert pair.block.held == MOST_HELD
    assert pair.block.condition is Condition.OVERRUN
    pair.read()
    pair.tell(results_ack=True)
    assert pair.block.ready


def test_a_count_that_is_still_under_way_is_missed(pair):
    pair.trigger(1)
    assert pair.trigger(1) == []
    assert pair.block.missed == 1


def test_another_session_forgets_all_and_says_so(pair):
    pair.trigger(1)
    pair.trigger(2)
    pair.offer(1)
    pair.read()
    (settled,) = pair.tell(session=9, trigger=True)
    assert settled.token == 1
    assert "session" in settled.refused
    block = pair.block
    assert (block.results_valid, block.held, block.busy, block.session) == (False, 0, False, 9)
    assert block.missed_trigger, "a Trigger that was up before belongs to no session"
    assert "session" in pair.offer(2)[0].refused
    pair.tell(trigger=False)
    (announced,) = pair.tell(trigger=True, count=1)
    assert announced.token == 3


def test_a_session_of_nought_ends_the_one_before(pair):
    pair.tell(session=0)
    assert pair.block.condition is Condition.NO_SESSION
    pair.tell(session=8)
    assert pair.block.ready


@given(st.lists(st.integers(0, 0xFFFF), min_size=20, max_size=20))
def test_any_registers_are_a_block_of_a_plc(registers):
    block = plc_block(registers)
    assert block.part_id.isprintable()
    again = plc_block(plc_registers(block))
    assert replace(again, part_id="") == replace(block, part_id="")


@given(
    score=st.floats(allow_nan=False),
    part_id=st.text(st.characters(categories=["L", "N"]), max_size=32),
    ok=st.booleans(),
)
def test_registers_keep_what_the_agent_says(score, part_id, ok):
    block = AgentBlock(score=thousandths(score), part_id=part_id, ok=ok, code=ResultCode.TIMEOUT)
    found = agent_block(agent_registers(block))
    assert replace(found, part_id="") == replace(block, part_id="")
    assert part_id.startswith(found.part_id)


@pytest.mark.parametrize("kind", ["server", "client"])
@settings(max_examples=6)
@given(seed=st.integers(0, 1 << 32))
def test_no_result_is_read_for_another_part_and_none_is_lost(kind, seed):
    seen = World(150, seed, kind=kind, rates=STRESS).run()
    assert seen.is_right, seen


@pytest.mark.parametrize(
    ("places", "empty", "to_bytes", "from_registers"),
    [
        (AGENT_MAP, AgentBlock(), agent_bytes, agent_block),
        (PLC_MAP, PlcBlock(), plc_bytes, plc_block),
    ],
)
def test_each_field_lies_where_its_map_says(places, empty, to_bytes, from_registers):
    before = words(to_bytes(empty))
    for place in places:
        kept = getattr(empty, place.field)
        value = "abc" if isinstance(kept, str) else type(kept)(1)
        written = words(to_bytes(replace(empty, **{place.field: value})))
        assert getattr(from_registers(written), place.field) == value
        changed = {n for n, each in enumerate(written) if each != before[n]}
        assert changed
        assert changed <= set(range(place.offset, place.offset + place.size))
        if place.bit is not None:
            assert written[place.offset] == 1 << place.bit
