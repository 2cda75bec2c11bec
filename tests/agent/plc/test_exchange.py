"""What trigger source, sink and connection share: whose result it is, and who is ready."""

import itertools
from dataclasses import replace

import pytest

from agent.clock import ManualClock
from agent.part import Part, State, Trigger, Verdict
from agent.plc.blocks import Condition, PlcBlock, ResultCode, agent_block, words
from agent.plc.exchange import Exchange
from agent.plc.sink import PlcSink
from agent.record.rows import Delivery
from engine.errors import ConfigurationError, SinkError
from tests.agent.events import event
from tests.agent.statuses import camera_status, status

CAMERA = replace(camera_status(), gives_frames=True)
WELL = status(cameras={"main": CAMERA})


class Plc:
    """An exchange on a clock that stands still, and the PLC at its other end."""

    def __init__(self):
        self.clock = ManualClock()
        self.sequences = itertools.count(1)
        self.exchange = Exchange(due_s=None, clock=self.clock)
        self.block = PlcBlock(session=1, trigger_enable=True)
        self.exchange.fails(None)
        self.exchange.report(WELL, "main")
        self.tell()
        self.tell(session=2)

    def tell(self, **signals):
        self.clock.advance(0.01)
        beat = self.block.heartbeat + 1
        self.block = replace(self.block, **{"heartbeat": beat} | signals)
        self.exchange.heard(self.block)

    def trigger(self, count, part_id=""):
        """The part that the station makes of it."""
        self.tell(trigger=True, count=count, part_id=part_id)
        self.tell(trigger=False)
        announced = self.exchange.announcement(0)
        trigger = Trigger(sequence=next(self.sequences), camera="main", triggered_ns=0, count=count)
        return Part(
            trigger=trigger,
            received=announced.at,
            part_id=announced.part_id,
            verdict=Verdict(state=State.OK, decided_ns=0, threshold=1.0),
        )

    def offer(self, part, number=1, *, state=State.OK, is_resent=False):
        delivery = Delivery(
            id=number,
            sink="plc",
            item="result",
            epoch="e",
            sequence=part.trigger.sequence,
            previous=0,
            is_resent=is_resent,
        )
        return self.exchange.offer(
            delivery, event(sequence=part.trigger.sequence, state=state, score=0.5)
        )

    def read(self):
        self.exchange.seen(self.exchange.block())
        return self.exchange.block()

    def acknowledge(self):
        self.tell(results_ack=True)
        self.tell(results_ack=False)


@pytest.fixture
def plc():
    return Plc()


def test_a_part_that_was_announced_is_claimed_once_and_its_result_is_told(plc):
    part = plc.trigger(7, "a")
    assert part.part_id == "a"
    assert plc.exchange.claims(part)
    assert not plc.exchange.claims(part)
    assert plc.offer(part) is None
    block = plc.read()
    assert (block.count, block.part_id, block.ok, block.score) == (7, "a", True, 500)
    plc.acknowledge()
    (receipt,) = plc.exchange.receipts(0)
    assert (receipt.delivery, receipt.refused) == (1, None)


def test_the_product_comes_with_the_trigger(plc):
    for number, told in ((7, "7"), (0, None)):
        plc.tell(trigger=True, count=number, product=number)
        plc.tell(trigger=False)
        assert plc.exchange.announcement(0).product == told


def test_parts_of_others_are_not_claimed(plc):
    part = plc.trigger(7)
    assert not plc.exchange.claims(replace(part, received=part.received + 1e-6))
    unseen = replace(part, trigger=replace(part.trigger, count=6))
    assert not plc.exchange.claims(unseen)


def test_what_is_sent_again_is_not_shown_again(plc):
    part = plc.trigger(7)
    plc.exchange.claims(part)
    plc.offer(part, 1)
    assert plc.offer(part, 1, is_resent=True) is None
    plc.read()
    plc.acknowledge()
    assert len(plc.exchange.receipts(0)) == 1
    receipt = plc.offer(part, 1, is_resent=True)
    assert receipt.refused is None
    assert not plc.read().results_valid


def test_a_result_from_an_earlier_run_is_refused(plc):
    part = plc.trigger(7)
    assert "earlier run" in plc.offer(part).refused


def test_a_result_of_an_earlier_session_is_refused_though_its_count_has_come_again(plc):
    old = plc.trigger(1)
    plc.exchange.claims(old)
    plc.tell(session=3)
    new = plc.trigger(1)
    plc.exchange.claims(new)
    assert plc.offer(old, 1, state=State.NG) is None
    (receipt,) = plc.exchange.receipts(0)
    assert "session ended" in receipt.refused
    plc.offer(new, 2)
    assert plc.read().ok


@pytest.mark.parametrize(
    ("changes", "condition"),
    [
        ({}, Condition.READY),
        ({"is_paused": True}, Condition.PAUSED),
        ({"cameras": {"main": replace(CAMERA, gives_frames=False)}}, Condition.FAULT),
        ({"faults": ("inference: hangs",)}, Condition.FAULT),
        ({"faults": ("mqtt: the broker is away",)}, Condition.READY),
        ({"is_last": True}, Condition.STOPPING),
    ],
)
def test_ready_follows_what_keeps_parts_from_being_inspected(plc, changes, condition):
    plc.exchange.report(replace(WELL, **changes), "main")
    plc.tell()
    assert plc.exchange.block().condition is condition


def test_an_agent_that_reports_no_more_is_not_ready(plc):
    for _ in range(60):
        plc.clock.advance(0.1)
        plc.tell()
    assert plc.exchange.block().condition is Condition.FAULT


def test_states_have_their_codes(plc):
    for number, state in enumerate(State, start=1):
        part = plc.trigger(number)
        plc.exchange.claims(part)
        plc.offer(part, number, state=state)
        block = plc.read()
        assert block.code is ResultCode[state.name]
        assert block.ok is (state is State.OK)
        plc.acknowledge()


def test_a_sink_is_that_of_one_camera_and_says_why_nothing_reaches_the_plc(plc):
    sink = PlcSink("plc", plc.exchange, lambda _exchange: plc)
    with pytest.raises(ConfigurationError, match="no camera"):
        sink.connect()
    sink.announces("main", None)
    with pytest.raises(ConfigurationError, match="announces the parts of main"):
        sink.announces("other", None)
    plc.exchange.fails("no PLC is connected")
    with pytest.raises(SinkError, match="no PLC is connected") as raised:
        sink.send(None, None)
    assert raised.value.retry_s < 1
    plc.exchange.fails(None)
    plc.clock.advance(3)
    with pytest.raises(SinkError, match="heartbeat does not change"):
        sink.receipts(0)


def test_what_a_plc_reads_is_kept_until_something_changes(plc):
    def read():
        return plc.exchange.registers(is_read=True)

    read()
    kept = read()
    plc.exchange.heard_again(plc.block, plc.block.heartbeat + 1)
    assert read() is kept
    plc.trigger(1)
    assert read() != kept
    for seconds in (0.5, 2.0):  # a heartbeat of the agent; none of the PLC
        kept = read()
        plc.clock.advance(seconds)
        assert read() != kept
    assert agent_block(words(read())).condition is Condition.NO_HEARTBEAT
    plc.exchange.heard_again(plc.block, plc.block.heartbeat + 2)
    assert agent_block(words(read())).condition is Condition.READY
    plc.exchange.report(replace(WELL, is_paused=True), "main")
    assert agent_block(words(read())).condition is Condition.PAUSED
