"""The audit counts labels of its own random sample, the latest word on each part, and no others."""

from agent.part import State
from agent.record.annotations import Label
from agent.record.ledger import Ledger
from engine.frame import Box
from tests.agent.parts import ended
from tests.inspections import inspection


def test_only_what_was_looked_at_because_it_was_drawn_counts(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite", agent_id="a", calibration_id="c") as ledger:
        for score, audit in [(1, 0.1), (3, 0.1), (3, 0.1), (3, None), (1, 0.1), (3, 0.1)]:
            number = ledger.next_sequence("main")
            part = ended(number, State.OK, inspection=inspection(score, Box.whole(2, 2)))
            part.audit = audit
            ledger.expect(part)
            ledger.record(part)
        ledger.flush(60)

        def say(sequence, label, queue):
            assert ledger.label(
                Label(epoch=ledger.epoch, sequence=sequence, label=label, queue=queue)
            )

        say(1, "good", "audit")
        say(2, "good", "audit")
        assert ledger.audited("c", 2.0) == (2, 1)
        say(3, "good", "ng")  # drawn, but looked at because it was NG
        say(4, "good", "audit")  # not drawn
        say(5, "defective", "audit")
        say(6, "good", "audit")
        assert ledger.audited("c", 2.0) == (3, 2)
        say(6, "withdrawn", "audit")
        say(5, "good", "ng")  # the latest word on a part of the audit
        assert ledger.audited("c", 2.0) == (3, 1)
        assert ledger.audited("another", 2.0) == (0, 0)
