"""The agent's side of the fleet: its process, and the answers to its questions."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter

from agent.child import Answer, RefusedError
from agent.fleet.oci import password_of
from agent.part import State
from agent.ports import Watched
from agent.services.child_service import ChildService, obeyed
from agent.services.fleet import FleetSettings
from agent.station.status import FleetStatus, Status
from engine.errors import ConfigurationError
from engine.signature import require_public_key

if TYPE_CHECKING:
    from agent.settings import Config

_MODULE: Final = "agent.services.fleet.main"
_STATUS: Final = TypeAdapter(FleetStatus)
_NO_VERDICT: Final = (State.ERROR, State.TIMEOUT)
_IS_WRONG: Final = ("refused", "rolled back")


class FleetService(ChildService):
    """Follows a desired state beside the line; a context manager.

    Raises `ConfigurationError` where key, password or configuration file cannot be used.
    """

    def __init__(self, settings: FleetSettings, watched: Watched) -> None:
        self.fleet = FleetStatus()
        setup = _setup(settings, watched)
        super().__init__("fleet", _MODULE, watched, setup=setup, reads_feed=False)

    def _answer(self, question: str, values: dict[str, Any]) -> Answer:
        requests = self._watched.requests
        match question:
            case "now":
                return in_force(self._watched.status()), ()
            case "tell":
                self.fleet = told = _STATUS.validate_python(values["status"])
                is_wrong = told.state in _IS_WRONG
                self._wrong = f"desired state {told.state}: {told.reason}" if is_wrong else None
                return None, ()
            case "promotion" | "promotion_status" if requests is not None:
                return obeyed(requests, question, values), ()
        raise RefusedError("the bundle of this run cannot change")


def in_force(status: Status) -> Mapping[str, object]:
    """What inspects now, and how the parts of this epoch have ended."""
    counts = sum((Counter(each.counts) for each in status.cameras.values()), Counter[State]())
    return {
        "bundle_id": status.bundle_id,
        "ends": {
            "epoch": status.epoch,
            "ended": status.ended,
            "ng": counts[State.NG],
            "errors": sum(counts[state] for state in _NO_VERDICT),
        },
    }


def key_of(settings: FleetSettings, config: "Config") -> tuple[str, Path]:
    """Where the public key is named of whoever signs, and which it is.

    Raises `ConfigurationError` where there is none, it cannot be used, or the line has products.
    """
    if config.products:
        remedy = "does not go with products: a desired state names one bundle"
        raise ConfigurationError("services.type", "fleet", remedy)
    option, key = "fleet.key", settings.key
    if key is None:
        option, key = "bundle.require_signature", config.bundle.require_signature
    if key is None:
        remedy = "is not named; an agent of a fleet obeys only who holds its private key"
        raise ConfigurationError("fleet.key", None, remedy)
    require_public_key(key, option)
    return option, key


def _setup(settings: FleetSettings, watched: Watched) -> Mapping[str, object]:
    config = watched.config
    option, key = key_of(settings, config)
    if watched.config_file is None:
        remedy = "is read from no file, which the fleet needs to try a bundle with"
        raise ConfigurationError("--config", None, remedy)
    return {
        "settings": asdict(settings),
        "password": password_of(settings.registry),
        "option": option,
        "key": key,
        "agent_id": config.agent.id,
        "folder": settings.folder_by(config.ledger.path),
        "labelled": settings.labelled_by(config.ledger.path),
        "bundle": config.bundle.path,
        "backend": config.bundle.backend,
        "precision": config.bundle.precision,
        "evidence": config.evidence.folder,
        "config_file": watched.config_file,
    }
