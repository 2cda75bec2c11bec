"""A PLC program for tests: what one scan does, as `docs/plc.md` asks of every PLC program."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from agent.plc.blocks import LARGEST, AgentBlock, PlcBlock, ResultCode
from agent.plc.handshake import HEARTBEAT_S

_ANSWER_S: Final = 2.0
"""A session that the agent has not taken up for so long gets another number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What the PLC knows of a part in the end: the agent's word, or why there is none."""

    number: int
    ok: bool = False
    code: ResultCode = ResultCode.NONE
    score: int = 0
    reason: str = ""


@dataclass(slots=True)
class PlcProgram:
    """Call `scan` once a cycle. `arrive` gives the number and the id of a part that waits, if any.

    What it has in its memory is lost with it: the next one starts from nothing, as after a restart.
    Every part ends once, in `ended`; `strays` are results that no part waits for.
    """

    arrive: Callable[[], tuple[int, str] | None]
    ended: Callable[[Ended], None]
    strays: int = 0
    _block: PlcBlock = field(default_factory=PlcBlock)
    _beats: int = 0
    _agent_beat: int | None = None
    _agent_alive_at: float = 0.0
    _asked_at: float = 0.0
    _is_running: bool = False
    _waiting: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Parts between trigger and result, by their count."""
    _next: deque[tuple[int, str]] = field(default_factory=deque)
    """The part whose data are written, before its Trigger."""

    def scan(self, agent: AgentBlock | None, now: float) -> PlcBlock:
        """One cycle: `agent` as it was read, `None` where it could not be; gives what is written.

        Nothing but the order of these lines matters.
        """
        block = self._block
        self._set(heartbeat=(block.heartbeat + 1) & LARGEST)
        if agent is None:
            return self._block
        if agent.heartbeat != self._agent_beat:
            self._beats += 1
            self._agent_beat, self._agent_alive_at = agent.heartbeat, now
        if self._keeps_session(agent, now):
            self._read_result(agent)
            self._trigger(agent, now)
        return self._block

    def stop(self, reason: str) -> None:
        """The program ends; parts under way get no result."""
        for number, _ in (*self._waiting.values(), *self._next):
            self.ended(Ended(number=number, reason=reason))
        self._waiting.clear()
        self._next.clear()

    def _keeps_session(self, agent: AgentBlock, now: float) -> bool:
        """Whether both are in the same session; else the parts under way have no result."""
        if agent.session == self._block.session != 0:
            self._is_running = True
            return True
        # What the agent has written before this program started may still be there.
        is_fresh = self._beats > 2  # the first is found, the second may be half old
        if self._is_running or (is_fresh and now - self._asked_at > _ANSWER_S):
            self.stop("the session has ended")
            number = max(agent.session, self._block.session) % LARGEST + 1
            self._set(trigger_enable=True, trigger=False, results_ack=False, session=number)
            self._is_running, self._asked_at = False, now
        return False

    def _read_result(self, agent: AgentBlock) -> None:
        if agent.results_valid and not self._block.results_ack:
            part = self._waiting.pop(agent.count, None)
            if part is None or part[1] != agent.part_id:
                self.strays += 1
            else:
                self.ended(Ended(number=part[0], ok=agent.ok, code=agent.code, score=agent.score))
        self._set(results_ack=agent.results_valid)

    def _trigger(self, agent: AgentBlock, now: float) -> None:
        if self._block.trigger:
            if agent.trigger_ack or agent.missed_trigger:
                self._set(trigger=False)
                if agent.missed_trigger:
                    number, _ = self._waiting.pop(self._block.count)
                    self.ended(Ended(number=number, reason="missed"))
        elif self._next and not (agent.trigger_ack or agent.missed_trigger):
            self._waiting[self._block.count] = self._next.popleft()
            self._set(trigger=True)
        elif not self._next and agent.ready and now - self._agent_alive_at <= HEARTBEAT_S:
            part = self.arrive()
            if part is not None:
                self._next.append(part)
                self._set(count=self._block.count % LARGEST + 1, part_id=part[1])

    def _set(self, **values: Any) -> None:
        self._block = replace(self._block, **values)
