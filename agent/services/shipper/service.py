"""The agent's side of the shipper: its process, and the answers to its questions."""

import importlib.util
from typing import Any, Final, Self

from agent.child import Answer, RefusedError, ServiceChild
from agent.ports import Watched
from agent.record.feed import to_json
from agent.requests import RequestError
from agent.services.shipper import ShipperSettings
from engine.errors import ConfigurationError
from engine.extras import install

_NEEDED: Final = ("boto3", "duckdb")


class ShipperService:
    """Runs the shipper beside the line; a context manager.

    Raises `ConfigurationError` where its packages are missing or its key cannot be read.
    """

    def __init__(self, settings: ShipperSettings, watched: Watched) -> None:
        for name in _NEEDED:
            if importlib.util.find_spec(name) is None:
                remedy = f"needs {name}; install with: {install('shipper')}"
                raise ConfigurationError("services.type", "shipper", remedy)
        self._settings = settings
        self._watched = watched
        settings.keys("services")
        self._said: str | None = None
        config = watched.config
        self._child = ServiceChild(
            "shipper",
            "agent.services.shipper.main",
            setup={
                "agent_id": config.agent.id,
                "site": settings.site,
                "bucket": settings.bucket,
                "endpoint": settings.endpoint,
                "region": settings.region,
                "ca_file": settings.ca_file,
                "every_s": 60 * settings.every_minutes,
                "max_bytes_s": 125 * settings.max_kbit_s,
                "frames_an_hour": settings.frames_an_hour,
                "near": config.evidence.near,
                "evidence": config.evidence.folder,
                "folder": settings.folder or config.ledger.path.with_name("shipper"),
            },
            feed=None,  # nothing of a part is wanted at once
            answer=self._answer,
        )

    @property
    def fault(self) -> str | None:
        """What is wrong with the shipper, or with where it ships to."""
        fault = self._child.fault or self._said
        return None if fault is None else f"shipper: {fault}"

    @property
    def pid(self) -> int | None:
        """The process id of the shipper; `None` while there is none."""
        return self._child.pid

    def __enter__(self) -> Self:
        self._child.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._child.__exit__(*error)

    def _answer(self, question: str, values: dict[str, Any]) -> Answer:
        match question:
            case "pulse":
                self._said = values["fault"]
                return None, ()
            case "keys":  # read again each time: they may have been replaced
                try:
                    return self._settings.keys("services"), ()
                except ConfigurationError as error:
                    raise RefusedError(str(error)) from None
            case "rows_after":
                cursor = str(values["epoch"]), int(values["sequence"])
                rows = self._watched.feed.rows_after(cursor, int(values["limit"]))
                if rows is None:
                    raise RefusedError("the ledger cannot be read")
                return [to_json(row) for row in rows], ()
            case "labels_after" if self._watched.requests is not None:
                try:
                    labels = self._watched.requests.labels_after(int(values["known"]))
                except RequestError as error:
                    raise RefusedError(str(error)) from None
                return [self._watched.status().epoch, labels], ()
        raise RefusedError(f"there is no question {question}")
