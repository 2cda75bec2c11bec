"""The change of bundles, in a running agent or a stopped one: `agent promote`, `agent rollback`."""

import getpass
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from engine.errors import ConfigurationError

if TYPE_CHECKING:
    from agent.settings import Config

_WITHIN_S: Final = 140.0
"""A start of the inference process may take two minutes."""

Kind = Literal["promote", "rollback"]


def user(by: str | None) -> str:
    """Who asks, for the record: the name given, or the user of this process."""
    if by:
        return by
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def change_bundle(
    config: "Config",
    kind: Kind,
    place: Path,
    *,
    by: str,
    why: str,
    product: str | None = None,
    camera: str | None = None,
) -> Mapping[str, object]:
    """Put the bundle at `place` in force, now or at the next start.

    Args:
        config: The agent's configuration.
        kind: What it is called in the audit log.
        place: Beside the bundle in force.
        by: Who asks.
        why: The reason.
        product: Whose bundle it is, where the line makes several products.
        camera: The camera whose own bundle it is.

    Returns:
        The answer of a running agent, or the ids of both bundles; `running` says which.

    Raises:
        ConfigurationError: The running agent cannot be asked.
        AtacError: The bundle is refused; nothing has changed.
    """
    from agent.bundle_places import put_in_force
    from agent.record.annotations import Change
    from agent.record.stopped import stopped_ledger
    from agent.sinks.mqtt.requests import ask
    from agent.sinks.mqtt.settings import MqttSettings
    from calibration.record import read_calibration
    from engine.bundle import open_bundle

    settings, agent = config.promoted(product, camera), config.agent.id
    new = open_bundle(place, signed_by=settings.require_signature)
    record = read_calibration(new, precision=settings.precision)
    with stopped_ledger(config.ledger.path, agent) as ledger:
        if ledger is not None:
            old = open_bundle(settings.path, signed_by=settings.require_signature)
            put_in_force(settings.path, place)
            ledger.note_change(Change(kind=kind, who=by, why=why, old=old.id, new=new.id))
            return {
                "bundle_id": new.id,
                "previous": old.id,
                "threshold": record.calibration.threshold,
                "running": False,
            }
    brokers = [sink for sink in config.sinks if isinstance(sink, MqttSettings)]
    if not brokers:
        remedy = "names no broker, so a running agent cannot be asked; stop it first"
        raise ConfigurationError("sinks", None, remedy)
    asked: dict[str, object] = {"by": by, "why": why}
    asked |= {k: v for k, v in {"product": product, "camera": camera}.items() if v is not None}
    if kind == "promote":
        asked["bundle_id"] = new.id
    return {**ask(brokers[0], agent, kind, within_s=_WITHIN_S, **asked), "running": True}


def told(answer: Mapping[str, object]) -> str:
    """The answer for people."""
    new, old = str(answer["bundle_id"])[:12], str(answer["previous"])[:12]
    when = "inspects the next part" if answer["running"] else "inspects when the agent starts"
    return (
        f"bundle {new} {when}, with threshold {answer['threshold']:.4g}; "
        f"agent rollback brings {old} back"
    )
