"""The handshake with a PLC: a pure state machine, without I/O and without a clock.

    what the PLC has written ──▶ heard ──┐               ┌──▶ Announced, Settled
    results of its parts ──────▶ offer ──┼──▶ Handshake ─┤
    time ──────────────────────▶ passed ─┘               └──▶ block: what the PLC reads

All signals are levels, and each falls only when the other side has been seen to react, so that no
delay and no repeated or lost reading can be taken for another part:

    Trigger ↑ → TriggerAck ↑, or MissedTrigger ↑ → Trigger ↓ → it falls
    result laid → seen → ResultsValid ↑ → ResultsAck ↑ → ResultsValid ↓ → ResultsAck ↓ → the next

Every trigger gets one of the two answers, and each one taken gets one result, in the order of the
triggers. A result that is not there when it is due is NG and late.

Counts start again when a PLC does. A session tells the parts of before from those of now: the PLC
gives it a number, and the agent says that number back. Another number ends the session, and all
that was open in it is forgotten, in one step. An agent that has just started does not know whether
it has been in the session that it finds: it says 0 until the PLC, which sees that, takes another.
"""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from agent.plc.blocks import LARGEST, UNKNOWN, AgentBlock, Condition, PlcBlock, ResultCode

MOST_HELD: Final = 8
"""Results that may wait for their acknowledgement before the agent takes no more triggers."""
MOST_OPEN: Final = 64
"""The same for parts without a result."""
HEARTBEAT_S: Final = 2.0
"""A PLC whose heartbeat has not changed for so long is not there."""
BEAT_S: Final = 0.5
LONGEST_S: Final = 30.0
"""A result that has no time is not waited for longer than this."""
ENDED: Final = "the PLC's session ended before it had read the result"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a part ended, as the PLC is told; `late_s` after its deadline."""

    code: ResultCode
    score: int
    threshold: int
    late_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """A trigger was taken; `token` names its part from now on."""

    token: int
    at: float
    count: int
    part_id: str
    product: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What has become of the result of a part; `refused` says why the PLC has not read it."""

    token: int
    refused: str | None = None


Action = Announced | Settled


class _Trigger(Enum):
    IDLE = auto()
    TAKEN = auto()
    MISSED = auto()


class _Shown(Enum):
    NOTHING = auto()
    LAID = auto()
    """The data can be read, and ResultsValid is low."""
    VALID = auto()
    READ = auto()
    """ResultsAck has come, and has yet to fall."""


@dataclass(slots=True, eq=False)
class _Part:
    token: int
    at: float
    count: int
    part_id: str
    due: float
    result: Result | None = None
    is_real: bool = False
    """The result is the part's own, not what is said when there is none in time."""


@dataclass(slots=True)
class Handshake:
    """One PLC and one agent. Calls come in the order of their times.

    `due_s` is the time after a trigger at which its result is due; `None`: as soon as it comes.
    `unready` says why no triggers are taken, as far as the agent knows; it may be set at any time.
    """

    due_s: float | None = None
    unready: Condition | None = None
    _plc: PlcBlock = field(default_factory=PlcBlock)
    _heartbeat: int = 0
    _alive_at: float | None = None
    _found: int | None = None
    """The session that was there at the start, until another one begins."""
    _session: int = 0
    _trigger: _Trigger = _Trigger.IDLE
    _shown: _Shown = _Shown.NOTHING
    _laid: AgentBlock = field(default_factory=AgentBlock)
    _open: list[_Part] = field(default_factory=list)
    _given_up: dict[int, float] = field(default_factory=dict)
    """Parts whose result the PLC no longer waits for, with their time."""
    _beat: int = 0
    _beats_at: float = 0.0
    _tokens: int = 0
    _taken: int = 0
    _missed: int = 0

    # ---- what happens

    def heard(self, plc: PlcBlock, now: float) -> list[Action]:
        """The PLC has written this, all of it in one piece."""
        self.beats(plc.heartbeat, now)
        self._plc = plc
        actions: list[Action] = []
        if plc.session != self._session or self._found is None:
            self._begin_session(plc, actions)
        if self._session:
            self._take_trigger(plc, now, actions)
            self._acknowledge(plc, actions)
        self.passed(now)
        return actions

    def beats(self, heartbeat: int, now: float) -> None:
        """The PLC has written the same again, but for its heartbeat."""
        if self._alive_at is None or heartbeat != self._heartbeat:
            self._heartbeat, self._alive_at = heartbeat, now

    def passed(self, now: float) -> None:
        """Time has passed."""
        for part in self._open:
            if part.result is None and now >= part.due:
                part.result = Result(code=ResultCode.LATE, score=UNKNOWN, threshold=UNKNOWN)
        first = self._open[0] if self._open else None
        is_free = self._shown is _Shown.NOTHING and not self._plc.results_ack
        if first is not None and first.result is not None and is_free:
            self._laid = _laid(first, first.result, now)
            self._shown = _Shown.LAID

    def seen(self, block: AgentBlock) -> bool:
        """The PLC has this block: where it has the data of the result, ResultsValid rises."""
        rises = self._shown is _Shown.LAID and _data(block) == _data(self._laid)
        if rises:
            self._shown = _Shown.VALID
        return rises

    def offer(self, token: int, result: Result, now: float) -> list[Action]:
        """The part of `token` has ended."""
        self.passed(now)
        part = next((each for each in self._open if each.token == token), None)
        due = self._given_up.pop(token, None) if part is None else part.due
        if part is not None and part.result is None:
            part.result, part.is_real = result, True
        elif due is None:
            return [Settled(token=token, refused=ENDED)]
        elif part is None or not part.is_real:
            late_ms = (now - due) * 1e3
            reason = f"came {late_ms:.0f} ms after it was due, and the PLC was told NG"
            return [Settled(token=token, refused=reason)]
        self.passed(now)
        return []

    def block(self, now: float) -> AgentBlock:
        """What the PLC is to read now."""
        if now >= self._beats_at:
            beat = int(now / BEAT_S)
            self._beat, self._beats_at = beat & LARGEST, (beat + 1) * BEAT_S
        held, condition, laid = self._held, self.condition(now), self._laid
        is_valid = self._shown is _Shown.VALID
        return AgentBlock(
            heartbeat=self._beat,
            ready=condition is Condition.READY,
            trigger_ack=self._trigger is _Trigger.TAKEN,
            busy=held < len(self._open),
            results_valid=is_valid,
            ok=is_valid and laid.ok,
            ng=is_valid and laid.ng,
            error=is_valid and laid.error,
            late=is_valid and laid.late,
            overrun=held >= MOST_HELD,
            missed_trigger=self._trigger is _Trigger.MISSED,
            session=self._session,
            condition=condition,
            held=held,
            taken=self._taken & LARGEST,
            missed=self._missed & LARGEST,
            count=laid.count,
            code=laid.code,
            score=laid.score,
            threshold=laid.threshold,
            late_ms=laid.late_ms,
            part_id=laid.part_id,
        )

    def condition(self, now: float) -> Condition:
        """Whether a trigger would be taken now, and why not."""
        if not self._session:
            return Condition.NO_SESSION
        if self.unready is not None:
            return self.unready
        if not self.is_alive(now):
            return Condition.NO_HEARTBEAT
        if not self._plc.trigger_enable:
            return Condition.DISABLED
        is_full = self._held >= MOST_HELD or len(self._open) >= MOST_OPEN
        return Condition.OVERRUN if is_full else Condition.READY

    def same_until(self, now: float) -> float:
        """Until when time alone changes nothing of what `block` has just given, once it is seen."""
        if self._shown is _Shown.LAID:
            return now
        until = self._beats_at
        if self._alive_at is not None and now <= self._alive_at + HEARTBEAT_S < until:
            until = self._alive_at + HEARTBEAT_S
        for part in self._open:
            if part.result is None and part.due < until:
                until = part.due
        return until

    def is_alive(self, now: float) -> bool:
        """Whether the PLC's heartbeat has changed lately."""
        return self._alive_at is not None and now - self._alive_at <= HEARTBEAT_S

    # ---- what follows

    @property
    def _held(self) -> int:
        held = 0
        for part in self._open:
            held += part.result is not None
        return held

    def _begin_session(self, plc: PlcBlock, actions: list[Action]) -> None:
        if self._found is None:
            self._found = plc.session
        if plc.session == self._session or (not self._session and plc.session == self._found):
            return
        self._session, self._found = plc.session, 0
        real = [part for part in self._open if part.is_real]
        actions.extend(Settled(token=part.token, refused=ENDED) for part in real)
        self._open.clear()
        self._given_up.clear()
        self._laid, self._shown = AgentBlock(), _Shown.NOTHING
        self._taken = self._missed = 0
        # A PLC waits for Ready first: what is up already belongs to the session before.
        self._trigger = _Trigger.MISSED if plc.trigger else _Trigger.IDLE

    def _take_trigger(self, plc: PlcBlock, now: float, actions: list[Action]) -> None:
        if not plc.trigger:
            self._trigger = _Trigger.IDLE
        elif self._trigger is _Trigger.IDLE:
            is_known = any(part.count == plc.count for part in self._open)
            if is_known or self.condition(now) is not Condition.READY:
                self._trigger = _Trigger.MISSED
                self._missed += 1
                return
            due_s = LONGEST_S if self.due_s is None else self.due_s
            self._trigger = _Trigger.TAKEN
            self._tokens += 1
            self._taken += 1
            self._open.append(_Part(self._tokens, now, plc.count, plc.part_id, now + due_s))
            announced = Announced(
                token=self._tokens,
                at=now,
                count=plc.count,
                part_id=plc.part_id,
                product=plc.product,
            )
            actions.append(announced)

    def _acknowledge(self, plc: PlcBlock, actions: list[Action]) -> None:
        if self._shown is _Shown.VALID and plc.results_ack:
            part = self._open.pop(0)
            self._shown = _Shown.READ
            if part.is_real:
                actions.append(Settled(token=part.token))
            else:
                self._given_up[part.token] = part.due
        elif self._shown is _Shown.READ and not plc.results_ack:
            self._shown = _Shown.NOTHING


def _data(block: AgentBlock) -> tuple[object, ...]:
    return (
        *(block.count, block.part_id, block.code),
        *(block.score, block.threshold, block.late_ms),
    )


def _laid(part: _Part, result: Result, now: float) -> AgentBlock:
    late_s = max(now - part.due, result.late_s)
    is_late = late_s > 0 or result.code is ResultCode.LATE
    return AgentBlock(
        ok=result.code is ResultCode.OK and not is_late,
        ng=result.code is not ResultCode.OK or is_late,
        error=result.code > ResultCode.NG,
        late=is_late,
        count=part.count,
        code=result.code,
        score=result.score,
        threshold=result.threshold,
        late_ms=min(LARGEST, max(0, round(late_s * 1e3))),
        part_id=part.part_id,
    )
