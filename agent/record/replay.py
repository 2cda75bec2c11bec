"""A replay that is asked for while the agent is stopped."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from agent.record import outbox, runs
from agent.record.rescue import locked
from agent.record.rows import Span
from agent.record.schema import check_place, connected, make_tables, transaction
from engine.errors import ConfigurationError, LedgerError


def requeue_in_file(
    path: Path, agent_id: str, sinks: Sequence[str], span: Span, epoch: str | None
) -> int | None:
    """Have parts delivered again by an agent that is stopped.

    Args:
        path: The ledger's file.
        agent_id: Whose parts.
        sinks: The names of the sinks that get them again.
        span: Their sequences.
        epoch: The epoch of the sequences; `None` for the latest one.

    Returns:
        How many deliveries wait again; `None` where an agent has the file open.

    Raises:
        ConfigurationError: There is no ledger.
        LedgerError: It cannot be read or written.
    """
    check_place(path)
    if not path.is_file():
        raise ConfigurationError("ledger.path", str(path), "there is no ledger yet")
    try:
        connection = connected(path)
    except sqlite3.Error as error:
        if locked(error):
            return None
        raise LedgerError(f"{path}: {error}") from error
    try:
        with transaction(connection):
            make_tables(connection)
            named = epoch or runs.latest_epoch(connection, agent_id)
            return sum(len(outbox.requeue(connection, sink, named, span).ids) for sink in sinks)
    except sqlite3.Error as error:
        raise LedgerError(f"{path}: {error}") from error
    finally:
        connection.close()
