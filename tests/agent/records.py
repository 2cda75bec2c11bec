"""A ledger that keeps nothing, for what is done before it."""

from agent.record.feed import Feed
from agent.record.retention import AgeClock
from agent.station.status import LedgerStatus


class Forgetful:
    """What the station needs of a ledger."""

    epoch = "0" * 12
    is_alive = True
    feed = Feed(rows_after=lambda _cursor, _limit: [], thumbnail=lambda _epoch, _sequence: None)

    def __init__(self):
        self._begun = 0
        self.ages = AgeClock()

    def next_sequence(self, _camera):
        self._begun += 1
        return self._begun

    def may_leave(self, _sequence, _timeout_s):
        return True

    def expect(self, part):
        pass

    def record(self, part, thumbnail):
        pass

    def cameras(self):
        return {}

    def status(self):
        return LedgerStatus()

    def changed_threshold(self, _calibration_id):
        return None

    def flush(self):
        return True
