"""The ledger of an agent that is stopped, for commands."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.record import annotations, runs
from agent.record.annotations import Change
from agent.record.rescue import locked
from agent.record.schema import check_place, connected, make_tables, transaction
from engine.errors import LedgerError


class StoppedLedger:
    """What a command may write; no agent can start meanwhile."""

    def __init__(self, connection: sqlite3.Connection, agent_id: str) -> None:
        self.connection = connection
        self.epoch = runs.latest_epoch(connection, agent_id)

    def note_change(self, change: Change) -> None:
        """Keep that somebody changed something."""
        with transaction(self.connection):
            annotations.insert_change(self.connection, self.epoch, 0, change)


@contextmanager
def stopped_ledger(path: Path, agent_id: str) -> Iterator[StoppedLedger | None]:
    """The ledger in file `path`, made where there is none; `None` while an agent has it open.

    Raises `LedgerError` where it cannot be read or written.
    """
    check_place(path)
    try:
        connection = connected(path)
    except sqlite3.Error as error:
        if not locked(error):
            raise LedgerError(f"{path}: {error}") from error
        connection = None
    if connection is None:
        yield None
        return
    try:
        with transaction(connection):
            make_tables(connection)
        yield StoppedLedger(connection, agent_id)
    except sqlite3.Error as error:
        raise LedgerError(f"{path}: {error}") from error
    finally:
        connection.close()
