"""The agent's side of the shipper: its process, and the answers to its questions."""

import importlib.util
from pathlib import Path
from typing import Any, Final

from agent.child import Answer, RefusedError
from agent.ports import Watched
from agent.services.child_service import ChildService, obeyed
from agent.services.shipper import ShipperSettings
from engine.errors import ConfigurationError
from engine.extras import install

_NEEDED: Final = ("boto3", "duckdb")


class ShipperService(ChildService):
    """Runs the shipper beside the line; a context manager.

    Raises `ConfigurationError` where its packages are missing or its key cannot be read.
    """

    def __init__(self, settings: ShipperSettings, watched: Watched) -> None:
        check_installed()
        self._settings = settings
        settings.keys("services")
        config = watched.config
        super().__init__(
            "shipper",
            "agent.services.shipper.main",
            watched,
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
                "folder": folder_of(settings, config.ledger.path),
            },
            reads_feed=False,  # nothing of a part is wanted at once
        )

    def _answer(self, question: str, values: dict[str, Any]) -> Answer:
        match question:
            case "pulse":
                self._wrong = values["fault"]
                return None, ()
            case "keys":  # read again each time: they may have been replaced
                try:
                    return self._settings.keys("services"), ()
                except ConfigurationError as error:
                    raise RefusedError(str(error)) from None
            case "rows_after":
                return self._rows_after(values)
            case "labels_after" if self._watched.requests is not None:
                known = {"known": int(values["known"])}
                labels = obeyed(self._watched.requests, "labels_after", known)
                return [self._watched.status().epoch, labels], ()
        raise RefusedError(f"there is no question {question}")


def check_installed() -> None:
    """Raise `ConfigurationError` unless the packages that a shipper needs are there."""
    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            remedy = f"needs {name}; install with: {install('shipper')}"
            raise ConfigurationError("services.type", "shipper", remedy)


def folder_of(settings: ShipperSettings, ledger: Path) -> Path:
    """Where the cursor is of the agent with this ledger."""
    return settings.folder or ledger.with_name("shipper")
