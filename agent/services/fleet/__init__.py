"""The agent follows a desired state in a registry: which bundle inspects on this line."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from agent.fleet.settings import RegistrySettings, TrialSettings
from agent.services.settings import AnyServiceSettings
from agent.settings_values import AnyPath, Seconds, Share
from engine.spec import spec

if TYPE_CHECKING:
    from agent.ports import Service, Watched

__all__ = ["FleetSettings", "open"]


@spec
class FleetSettings(AnyServiceSettings):
    """The `registry` that is followed, and how far a new bundle may change what the line says.

    `key` is the public key of whoever signs bundles and desired states; without it it is
    `bundle.require_signature`. The registry is asked every `every_s` seconds, give or take a
    third. The threshold of a new bundle is set with the good parts in `good` and those that were
    labelled in the audit of the page, `labelled`; it promises `max_false_reject`, or as little as
    these parts carry. On a line with products `good` has a folder for each of them. `folder` has
    what was pulled; without it: `fleet` beside the ledger.
    """

    type: Literal["fleet"] = "fleet"
    registry: RegistrySettings
    key: AnyPath | None = None
    every_s: Seconds = 90.0
    folder: AnyPath | None = None
    good: AnyPath | None = None
    labelled: AnyPath | None = None
    max_false_reject: Annotated[float, Field(ge=0.0001, le=0.5)] | None = None
    max_changed: Share = 0.2
    trial: TrialSettings = TrialSettings()

    @property
    def written_to(self) -> Mapping[str, Path]:
        """The folder, where it is named."""
        return {} if self.folder is None else {"folder": self.folder}

    def folder_by(self, ledger: Path) -> Path:
        """Where the agent with this ledger keeps what was pulled."""
        return self.folder or ledger.parent / "fleet"

    def good_of(self, place: str) -> Path | None:
        """Where the good parts lie of a product, or of the whole line."""
        return None if self.good is None else self.good / place

    def labelled_by(self, ledger: Path) -> Path:
        """Where the page of the agent with this ledger keeps what was labelled."""
        return self.labelled or ledger.parent / "page" / "labelled"


def open(settings: FleetSettings, watched: "Watched") -> "Service":
    """Follows the desired state of the agent that is `watched`."""
    from agent.services.fleet.service import FleetService  # noqa: PLC0415 - where it is used

    return FleetService(settings, watched)
