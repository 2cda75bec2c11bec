"""What trigger source, sink and connection share of one handshake.

    atac-trigger  read ◀── announcements ──┐             ┌── heard ────────── atac-plc
    recorder      claims ──────────────────┤             │      the connection: Modbus TCP,
    atac-sink     offer ───────────────────┼─ Exchange ──┤      OPC UA
                  receipts ◀── settled ────┘             └── block, seen ─────▶

Any thread may call it; nothing in it waits but `announcement` and `receipts`.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, TypeVar

from agent.part import Part, State
from agent.plc.blocks import (
    AgentBlock,
    Condition,
    PlcBlock,
    ResultCode,
    agent_bytes,
    thousandths,
)
from agent.plc.handshake import Action, Announced, Handshake, Result
from agent.ports import Announcement, Clock, Receipt
from agent.record.rows import Delivery, Event
from agent.requests import Tally
from agent.station.status import Status

WINDOW: Final = 100
"""More than there can be open parts, so that none waits behind another."""
_REMEMBERED: Final = 1000
_SILENT_S: Final = 5.0
"""An agent that has not reported for so long is not ready for parts."""
_FROM_BEFORE: Final = "no PLC waits for it: its trigger came in an earlier run or session"
_INFERENCE: Final = "inference:"


Key = TypeVar("Key")
Value = TypeVar("Value")


class Exchange:
    """One handshake and those who take part in it.

    Args:
        due_s: The time after a trigger at which its result is due.
        clock: The agent's.
    """

    def __init__(self, *, due_s: float | None, clock: Clock) -> None:
        self._clock = clock
        self.names_products = False
        """Whether the PLC says what each part is; set before the connection is made."""
        self.peers: Final = Tally()
        """Connections and requests that were not served, as the connection counts them."""
        self._handshake = Handshake(due_s=due_s, unready=Condition.FAULT)
        self._lock = threading.RLock()
        self._has_announced = threading.Condition(self._lock)
        self._has_settled = threading.Condition(self._lock)
        self._announced: deque[Announcement] = deque()
        self._taken: OrderedDict[tuple[float, int | None], int] = OrderedDict()
        self._tokens: OrderedDict[int, int] = OrderedDict()
        self._deliveries: OrderedDict[int, int] = OrderedDict()
        self._outcomes: OrderedDict[int, str | None] = OrderedDict()
        self._receipts: list[Receipt] = []
        self._reported_at: float | None = None
        self._unready: Condition | None = Condition.FAULT
        self._fault: str | None = "has not been started yet"
        self._same_until = 0.0
        self._registers = agent_bytes(AgentBlock())

    # ---- by the connection

    def heard(self, plc: PlcBlock) -> None:
        """The PLC has written this."""
        with self._lock:
            self._do(self._handshake.heard(plc, self._looked()))

    def heard_again(self, plc: PlcBlock, heartbeat: int) -> None:
        """The PLC has written `plc`, which was `heard` last, but for its heartbeat.

        In most scans there is no more, and no lock is taken for it.
        """
        now = self._clock.now()
        if plc.results_ack or not self._handshake.is_alive(now):
            self.heard(replace(plc, heartbeat=heartbeat))
        else:
            self._handshake.beats(heartbeat, now)

    def block(self) -> AgentBlock:
        """What the PLC is to read now."""
        with self._lock:
            now = self._looked()
            self._handshake.passed(now)
            return self._handshake.block(now)

    def registers(self, *, is_read: bool) -> bytes:
        """The same as the bytes of its registers; `is_read`: the PLC has them with this call.

        As long as nothing changes they are those of the last call, and no lock is taken for them.
        """
        if self._clock.now() < self._same_until:
            return self._registers
        with self._lock:
            now = self._looked()
            self._handshake.passed(now)
            block = self._handshake.block(now)
            self._registers = registers = agent_bytes(block)
            if is_read and self._handshake.seen(block):
                return registers
            silent_at = (self._reported_at or now) + _SILENT_S
            until = self._handshake.same_until(now)
            self._same_until = until if silent_at < now else min(until, silent_at)
            return registers

    def seen(self, block: AgentBlock) -> None:
        """The PLC has this block."""
        with self._lock:
            self._handshake.seen(block)
            self._same_until = 0.0

    @property
    def hears(self) -> bool:
        """Whether the PLC's heartbeat has changed lately."""
        with self._lock:
            return self._handshake.is_alive(self._clock.now())

    def fails(self, fault: str | None) -> None:
        """Why there is no connection; `None`: there is one."""
        with self._lock:
            if fault != self._fault:
                self._fault = fault
                self._has_settled.notify_all()

    # ---- by the trigger's thread

    def announcement(self, timeout_s: float) -> Announcement | None:
        """The next part that the PLC has announced; `None` when none came in time."""
        with self._has_announced:
            self._has_announced.wait_for(lambda: self._announced, timeout_s)
            return self._announced.popleft() if self._announced else None

    # ---- by the recorder's thread

    def claims(self, part: Part) -> bool:
        """Whether the PLC waits for the result of an ended part."""
        with self._lock:
            token = self._taken.pop((part.received, part.trigger.count), None)
            if token is None:
                return False
            _keep(self._tokens, part.trigger.sequence, token)
            return True

    # ---- by the sink's thread

    @property
    def fault(self) -> str | None:
        """Why no results reach a PLC."""
        with self._lock:
            if self._fault is None and not self._handshake.is_alive(self._clock.now()):
                return "the PLC's heartbeat does not change: is its program running?"
            return self._fault

    def offer(self, delivery: Delivery, event: Event) -> Receipt | None:
        """A part's result is to be told; a receipt at once where nobody waits for it."""
        with self._lock:
            token = self._tokens.get(event.sequence)
            if token is None:
                return Receipt(delivery=delivery.id, refused=_FROM_BEFORE)
            if token in self._outcomes:
                return Receipt(delivery=delivery.id, refused=self._outcomes[token])
            _keep(self._deliveries, token, delivery.id)
            self._do(self._handshake.offer(token, _result(event), self._looked()))
            return None

    def receipts(self, timeout_s: float) -> Sequence[Receipt]:
        """What has become of the results; waits for the first."""
        with self._has_settled:
            self._has_settled.wait_for(lambda: self._receipts or self._fault, timeout_s)
            receipts, self._receipts = self._receipts, []
            return receipts

    def report(self, status: Status, camera: str) -> None:
        """How the agent is: while it cannot inspect, the PLC is told that it is not ready."""
        with self._lock:
            self._reported_at = self._clock.now()
            known = status.cameras.get(camera)
            is_faulty = known is None or not known.gives_frames
            is_faulty |= any(fault.startswith(_INFERENCE) for fault in status.faults)
            self._unready = None
            if status.is_last:
                self._unready = Condition.STOPPING
            elif is_faulty:
                self._unready = Condition.FAULT
            elif status.is_paused:
                self._unready = Condition.PAUSED
            self._looked()

    # ---- with the lock

    def _looked(self) -> float:
        """The time; sets whether the agent is ready now. What the PLC reads may change."""
        now = self._clock.now()
        self._same_until = 0.0
        is_silent = self._reported_at is None or now - self._reported_at > _SILENT_S
        self._handshake.unready = self._unready or (Condition.FAULT if is_silent else None)
        return now

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Announced):
                _keep(self._taken, (action.at, action.count), action.token)
                product = str(action.product) if action.product else None
                self._announced.append(
                    Announcement(
                        at=action.at,
                        part_id=action.part_id or None,
                        count=action.count,
                        product=product,
                    )
                )
                self._has_announced.notify()
                continue
            _keep(self._outcomes, action.token, action.refused)
            delivery = self._deliveries.pop(action.token, None)
            if delivery is not None:
                self._receipts.append(Receipt(delivery=delivery, refused=action.refused))
                self._has_settled.notify()


def _keep(known: OrderedDict[Key, Value], key: Key, value: Value) -> None:
    known[key] = value
    if len(known) > _REMEMBERED:
        known.popitem(last=False)


def _result(event: Event) -> Result:
    return Result(
        code=_CODES[event.state],
        score=thousandths(event.score),
        threshold=thousandths(event.threshold),
        late_s=event.late_s or 0.0,
    )


_CODES: Final = {state: ResultCode[state.name] for state in State}
