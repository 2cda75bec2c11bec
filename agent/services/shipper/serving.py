"""The threads of the shipper's process.

    main ─ sleeps, ships, sleeps     shipper-pulse ─ shows that it lives, and says its fault

Either of them that ends, ends the process, and the agent starts another.
"""

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from agent.child import AgentEnd, RefusedError
from agent.clock import SystemClock
from agent.ports import Clock
from agent.record.evidence_files import EvidenceIndex
from agent.record.feed import ROWS, Cursor, from_json
from agent.record.rows import Event
from agent.services.shipper.shipper import Shipper, ShippingError
from agent.services.shipper.store import S3Address, S3Store, StoreError
from engine.regular_file import read_regular

_LOG: Final = logging.getLogger("atac_agent.shipper")
_PULSE_S: Final = 0.5
_FIRST_RETRY_S: Final = 2.0
_LAST_RETRY_S: Final = 300.0
_FRAME_MAX_BYTES: Final = 16_000_000


def serve(argument: str) -> None:
    """Ship until the agent goes."""
    logging.basicConfig(format="agent: shipper: %(message)s", level=logging.WARNING)
    agent, _ = AgentEnd.taken(argument)
    rounds = Rounds(opened(agent), every_s=agent.setup["every_s"])
    threading.Thread(target=_pulse, args=(agent, rounds), name="shipper-pulse").start()
    try:
        rounds.run()
    except ConnectionError:
        os._exit(0)  # the agent has gone
    except Exception:  # noqa: BLE001 - the process ends, and another is started
        _LOG.exception("the shipper has ended")
    os._exit(1)


def _pulse(agent: AgentEnd, rounds: "Rounds") -> None:
    while True:
        try:
            agent.pulse("pulse", fault=rounds.fault)
        except ConnectionError:
            os._exit(0)
        time.sleep(_PULSE_S)


class Rounds:
    """Ships in rounds, and tries again with exponential back-off.

    Rounds of several agents are spread: each begins at a moment of its own.

    Args:
        shipper: Ships what is new.
        every_s: From one round to the next.
        clock: Says when.
        chance: Draws from 0 to 1: when the first round is, and how long a retry waits.
    """

    def __init__(
        self,
        shipper: Shipper,
        *,
        every_s: float,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._shipper = shipper
        self._every_s = every_s
        self._clock = clock or SystemClock()
        self._chance = chance
        self.stop: Final = threading.Event()
        self.fault: str | None = None
        """Why nothing is shipped just now."""

    def run(self) -> None:
        """Until `stop` is set."""
        retry_s = _FIRST_RETRY_S
        due = self._clock.now() + self._every_s * self._chance()
        while not self._clock.wait(self.stop, due - self._clock.now()):
            try:
                self._shipper.ship()
            except (RefusedError, ShippingError, StoreError) as error:
                self._failed(str(error))
                due = self._clock.now() + retry_s * (0.5 + self._chance())
                retry_s = min(_LAST_RETRY_S, 2 * retry_s)
            else:
                if self.fault is not None:
                    _LOG.warning("it ships again; nothing was lost")
                self.fault, retry_s = None, _FIRST_RETRY_S
                due = self._clock.now() + self._every_s

    def _failed(self, fault: str) -> None:
        if self.fault is None:
            _LOG.error("%s; parts wait in the ledger, inspection is not affected", fault)
        self.fault = fault


def opened(agent: AgentEnd) -> Shipper:
    """The shipper of this agent."""
    setup = agent.setup

    def open_store() -> S3Store:
        keys: Any = agent.ask("keys")[0]
        ca_file = None if setup["ca_file"] is None else Path(setup["ca_file"])
        names = ("bucket", "endpoint", "region")
        address = S3Address(**{name: setup[name] for name in names}, **keys, ca_file=ca_file)
        return S3Store(address, max_bytes_s=setup["max_bytes_s"])

    return Shipper(
        Agent(agent),
        open_store,
        folder=Path(setup["folder"]),
        site=setup["site"],
        agent_id=setup["agent_id"],
        near=setup["near"],
        frames_an_hour=setup["frames_an_hour"],
    )


class Agent:
    """The agent at the other end, as the shipper reads it."""

    def __init__(self, agent: AgentEnd) -> None:
        self._agent = agent
        kept = agent.setup["evidence"]
        self._index = None
        if kept is not None:
            self._index = EvidenceIndex(Path(kept), agent.setup["agent_id"])

    def rows_after(self, after: Cursor) -> list[Event] | None:
        """See `Source`."""
        epoch, sequence = after
        try:
            rows, _ = self._agent.ask("rows_after", epoch=epoch, sequence=sequence, limit=ROWS)
        except RefusedError:
            return None
        assert isinstance(rows, list)
        return [from_json(row) for row in rows]

    def labels_after(self, known: int) -> tuple[str, Sequence[Mapping[str, Any]]] | None:
        """See `Source`."""
        try:
            answer, _ = self._agent.ask("labels_after", known=known)
        except RefusedError:
            return None
        assert isinstance(answer, list)
        return answer[0], answer[1]

    def frame(self, epoch: str, sequence: int) -> bytes | None:
        """See `Source`."""
        path = None if self._index is None else self._index.find(epoch, sequence)
        if path is None:
            return None
        try:
            return read_regular(path, limit=_FRAME_MAX_BYTES)
        except OSError:
            return None  # it has just gone, or is no picture of ours
