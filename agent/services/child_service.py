"""What services share whose work is done by a process of its own."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

from agent.child import Answer, RefusedError, ServiceChild
from agent.ports import Watched
from agent.record.feed import to_json
from agent.requests import RequestError, Requests


def obeyed(requests: Requests, question: str, values: Mapping[str, Any]) -> object:
    """What the method `question` of the agent's requests says; raises `RefusedError`."""
    try:
        said: object = getattr(requests, question)(**values)
    except RequestError as error:
        raise RefusedError(str(error)) from None
    return said


class ChildService(ABC):
    """Runs a child process beside the line, and answers its questions; a context manager.

    Args:
        name: Begins its faults, and names threads and log lines.
        module: What the child runs; as `ServiceChild` takes it.
        watched: The agent.
        setup: What the child is told first.
        reads_feed: Whether the child hears of each part at once.
    """

    def __init__(
        self,
        name: str,
        module: str,
        watched: Watched,
        *,
        setup: Mapping[str, Any],
        reads_feed: bool,
    ) -> None:
        self._name = name
        self._watched = watched
        self._wrong: str | None = None
        """What the child has said of itself."""
        self._child = ServiceChild(
            name,
            module,
            setup=setup,
            feed=watched.feed if reads_feed else None,
            answer=self._answer,
        )

    @property
    def fault(self) -> str | None:
        """What is wrong with the process, or with its work."""
        found = self._child.fault or self._wrong
        return None if found is None else f"{self._name}: {found}"

    @property
    def pid(self) -> int | None:
        """The process id; `None` while there is none."""
        return self._child.pid

    def __enter__(self) -> Self:
        self._child.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._child.__exit__()

    @abstractmethod
    def _answer(self, question: str, values: dict[str, Any]) -> Answer:
        """Answer the child, in its threads; raises `RefusedError`."""

    def _rows_after(self, values: Mapping[str, Any]) -> Answer:
        """The next recorded parts after the child's cursor."""
        cursor = str(values["epoch"]), int(values["sequence"])
        rows = self._watched.feed.rows_after(cursor, int(values["limit"]))
        if rows is None:
            raise RefusedError("the ledger cannot be read")
        return [to_json(row) for row in rows], ()
