"""`fleet.yaml`: which lines there are, their registry and brokers, and how bundles roll out."""

import json
import math
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from agent.fleet.settings import RegistrySettings
from agent.mqtt.settings import BrokerSettings
from agent.services.page.settings import ServedSettings, check_place
from agent.services.shipper.settings import BucketSettings
from agent.settings import anchored
from agent.settings_errors import explained
from agent.settings_file import read_yaml
from agent.settings_values import AnyPath, Name, Seconds, Share, Text
from agent.sinks.mqtt.settings import TOPIC_TEMPLATE, check_template
from engine.spec import spec

PLAN: Final = Path("fleet.yaml")


@spec
class SiteBroker(BrokerSettings):
    """A broker of a site, on which its lines say how they are; `site` is shown beside them."""

    place: ClassVar[str] = "brokers"

    site: Name | None = None
    topics: Annotated[Text, AfterValidator(check_template)] = TOPIC_TEMPLATE


@spec
class RollOutSettings:
    """When a bundle may go from one ring of lines to the next.

    The first line of `lines` is the first ring; then come `shares` of all, and then all. A ring is
    well when its lines have the bundle in force, with at most the share `max_changed` of other
    verdicts, and a promise of `max_false_reject` at most. The share `tolerate` of a ring may be
    silent or not well.
    """

    shares: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(max_length=10)] = (
        0.01,
        0.1,
    )
    max_changed: Share = 0.1
    max_false_reject: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    tolerate: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    ask_every_s: Seconds = 60.0


@spec
class FleetPageSettings(ServedSettings):
    """The page of the fleet; `folder` has its users and what it has read of the bucket."""

    listen: Annotated[Text, AfterValidator(check_place)] = "127.0.0.1:8090"
    folder: AnyPath = Path("fleet-page")


@spec
class FleetPlan:
    """All of `fleet.yaml`; `key` is the public key of whoever signs.

    `bucket` is where the lines ship their parts to; the key to it need only read.
    """

    registry: RegistrySettings
    key: AnyPath
    lines: Annotated[tuple[Name, ...], Field(min_length=1, max_length=100_000)]
    brokers: Annotated[tuple[SiteBroker, ...], Field(max_length=1000)] = ()
    roll_out: RollOutSettings = RollOutSettings()
    bucket: BucketSettings | None = None
    page: FleetPageSettings = FleetPageSettings()

    @property
    def rings(self) -> tuple[tuple[str, ...], ...]:
        """The lines that each ring adds."""
        lines, found, taken = self.lines, [], 0
        counts = [1, *(math.ceil(share * len(lines)) for share in self.roll_out.shares), len(lines)]
        for count in counts:
            if count > taken:
                found.append(lines[taken:count])
                taken = count
        return tuple(found)


_PLAN: Final = TypeAdapter(FleetPlan)


def load_plan(path: Path) -> FleetPlan:
    """Read a plan; relative paths in it start at its own folder.

    Raises `ConfigurationError`, as `agent.settings.load_config` does.
    """
    written = read_yaml(path, key="--fleet")
    try:
        plan = _PLAN.validate_json(json.dumps(written.data), strict=True)
    except ValidationError as error:
        raise explained(error, written, FleetPlan) from None
    twice = next((one for n, one in enumerate(plan.lines) if one in plan.lines[:n]), None)
    if twice is not None:
        raise written.refused(("lines",), twice, "stands there twice")
    found: FleetPlan = anchored(plan, path.parent)
    return found
