"""A replay that is asked for while the agent is stopped."""

from collections.abc import Sequence
from pathlib import Path

from agent.record import outbox
from agent.record.rows import Span
from agent.record.schema import check_place, transaction
from agent.record.stopped import stopped_ledger
from engine.errors import ConfigurationError


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
    with stopped_ledger(path, agent_id) as ledger:
        if ledger is None:
            return None
        file, named = ledger.connection, epoch or ledger.epoch
        with transaction(file):
            return sum(len(outbox.requeue(file, sink, named, span).ids) for sink in sinks)
