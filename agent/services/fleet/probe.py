"""What is desired of an agent, and whether it could follow, before the line depends on it."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from agent.fleet.desired import (
    LINE,
    STOP,
    Desired,
    Stop,
    current,
    repository_of,
    require_current,
    require_newer,
    require_ours,
)
from agent.fleet.follower import not_made
from agent.fleet.kept import read_kept
from agent.fleet.oci import Registry
from agent.labelled import calibration_parts
from agent.record.evidence_files import check_folder
from agent.services.fleet import FleetSettings
from agent.services.fleet.service import key_of, places_of
from calibration.bound import good_parts_needed
from engine.errors import ConfigurationError, DesiredStateError, RegistryError

if TYPE_CHECKING:
    from agent.settings import Config

_WEAKEST: Final = 0.05
_CLOCKS: Final = timedelta(minutes=1)
_CONFIDENCE: Final = 0.95


def probe(settings: FleetSettings, config: "Config") -> tuple[str, bool]:
    """What the registry desires of the agent, in one line; `False`: something should be done.

    Raises `ConfigurationError` where the service could not begin.
    """
    places = places_of(config)
    option, key = key_of(settings, places)
    registry, agent_id = Registry.of(settings.registry), config.agent.id
    folder = settings.folder_by(config.ledger.path)
    if (fault := check_folder(folder)) is not None:
        return f"{fault}; no bundle could be pulled", False
    try:
        kept, now = read_kept(folder), datetime.now(UTC)
        found = current(registry, repository_of(agent_id), Desired, key, option=option)
        if found is not None:
            require_ours(found[0], agent_id)
            require_newer(*found, kept)
            require_current(found[0], now)
        stop = current(registry, STOP, Stop, key, option=option)
    except (RegistryError, DesiredStateError) as error:
        return str(error), False
    said = f"{settings.registry.address} has no desired state for {agent_id}"
    if found is not None:
        said = _said(found[0])
    if registry.date is not None and (apart := abs(now - registry.date)) > _CLOCKS:
        minutes = apart.total_seconds() / 60
        clocks = f"this machine's clock and the registry's differ by {minutes:.0f} min"
        return f"{said}; {clocks}: set one of them", False
    if stop is not None and stop[0].is_stopped:
        return f"{said}; the fleet is stopped: {stop[0].why or 'without a reason'}", False
    if found is not None and (unknown := found[0].wanted.keys() - places.keys()):
        named = f"{', '.join(sorted(unknown))}: " if LINE not in unknown else ""
        return f"{said}; {named}{not_made(places)}", False
    labelled = settings.labelled_by(config.ledger.path)
    needed = good_parts_needed(
        max_false_reject=settings.max_false_reject or _WEAKEST, confidence=_CONFIDENCE
    )
    counts = []
    for name, place in places.items():
        of = f" of {name}" if name else " of this line"
        try:
            files = calibration_parts(
                labelled, settings.good_of(name), product=place.product, cameras=place.cameras
            )
        except ConfigurationError as error:
            return f"{said}; a new bundle would be refused: {error}", False
        counts.append(f"{len(files)} good parts{of}")
        if len(files) < needed:
            lacks = f"{counts[-1]} are kept, and a threshold needs {needed}"
            return f"{said}; a new bundle would be refused: {lacks}", False
    return f"{said}; {', '.join(counts)} can set a threshold", True


def _said(desired: Desired) -> str:
    """What is desired, in words."""
    named = [f"{one.bundle[:12]} for {place}" for place, one in desired.wanted.items() if place]
    bundles = f"bundles {', '.join(named)}" if named else f"bundle {(desired.bundle or '')[:12]}"
    return f"desired {'are' if named else 'is'} {bundles}, with serial {desired.serial}"
