"""The agent's side of the fleet: its process, and the answers to its questions."""

import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter

from agent.child import Answer, RefusedError
from agent.fleet.desired import LINE, place_of
from agent.fleet.oci import password_of
from agent.part import State
from agent.ports import Watched
from agent.services.child_service import ChildService, obeyed
from agent.services.fleet import FleetSettings
from agent.station.status import FleetStatus, Status
from engine.errors import ConfigurationError
from engine.signature import require_public_key

if TYPE_CHECKING:
    from agent.settings import BundleSettings, Config

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
        self._run = secrets.token_hex(4)
        setup = _setup(settings, watched)
        super().__init__("fleet", _MODULE, watched, setup=setup, reads_feed=False)

    def _answer(self, question: str, values: dict[str, Any]) -> Answer:
        requests = self._watched.requests
        match question:
            case "now":
                return in_force(self._watched.status(), self._run), ()
            case "tell":
                self.fleet = told = _STATUS.validate_python(values["status"])
                is_wrong = told.state in _IS_WRONG
                self._wrong = f"desired state {told.state}: {told.reason}" if is_wrong else None
                return None, ()
            case "promotion" | "promotion_status" if requests is not None:
                return obeyed(requests, question, values), ()
        raise RefusedError("the bundle of this run cannot change")


def in_force(status: Status, run: str) -> Mapping[str, object]:
    """What inspects now, by place, and how its parts have ended.

    Of the one bundle of a line they are those of this epoch, and of products those of this `run`.
    """
    if status.products:
        return {
            place: _ends(one.bundle_id, f"{status.epoch} {run}", one.counts)
            for place, one in status.products.items()
        }
    counts = sum((Counter(each.counts) for each in status.cameras.values()), Counter[State]())
    return {LINE: _ends(status.bundle_id, status.epoch, counts)}


def _ends(bundle_id: str, epoch: str, counts: Mapping[State, int]) -> Mapping[str, object]:
    return {
        "bundle_id": bundle_id,
        "ends": {
            "epoch": epoch,
            "ended": sum(counts.values()),
            "ng": counts.get(State.NG, 0),
            "errors": sum(counts.get(state, 0) for state in _NO_VERDICT),
        },
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Whose parts a bundle of the configuration inspects; without `cameras`, at all of them.

    `camera` is one that has this bundle of its own.
    """

    product: str | None
    camera: str | None
    cameras: tuple[str, ...]
    bundle: "BundleSettings"


def places_of(config: "Config") -> dict[str, Place]:
    """The bundles of a line that a desired state may name, by what it calls them.

    Raises `ConfigurationError` where two products share one.
    """
    pairs: list[tuple[str | None, str | None]] = [(None, None)]
    if config.products:
        pairs = []
        for one in config.products:
            own = config.views(one)
            pairs += [(one.name, None)] if len(own) < len(config.cameras) else []
            pairs += [(one.name, camera) for camera in own]
    found = {}
    for product, camera in pairs:
        place = Place(
            product=product,
            camera=camera,
            cameras=tuple(config.inspected(product, camera)[1]),
            bundle=config.promoted(product, camera),
        )
        found[place_of(product, camera)] = place
    return found


def key_of(settings: FleetSettings, places: Mapping[str, Place]) -> tuple[str, Path]:
    """Where the public key is named of whoever signs, and which it is.

    Raises `ConfigurationError` where there is none, or it cannot be used.
    """
    option, key = "fleet.key", settings.key
    if key is None:
        option = "bundle.require_signature"
        keys = {one.bundle.require_signature for one in places.values()}
        if len(keys) > 1:
            remedy = "is not named, and the products' bundles name several; say whom to obey"
            raise ConfigurationError("fleet.key", None, remedy)
        (key,) = keys
    if key is None:
        remedy = "is not named; an agent of a fleet obeys only who holds its private key"
        raise ConfigurationError("fleet.key", None, remedy)
    require_public_key(key, option)
    return option, key


def _setup(settings: FleetSettings, watched: Watched) -> Mapping[str, object]:
    config = watched.config
    places = places_of(config)
    option, key = key_of(settings, places)
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
        "places": {
            place: {
                "product": one.product,
                "camera": one.camera,
                "cameras": one.cameras,
                "bundle": one.bundle.path,
                "backend": one.bundle.backend,
                "precision": one.bundle.precision,
            }
            for place, one in places.items()
        },
        "evidence": config.evidence.folder,
        "config_file": watched.config_file,
    }
