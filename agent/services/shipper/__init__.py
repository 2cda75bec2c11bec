"""Ships what is recorded to S3: parts as Parquet, chosen frames, labels; see docs/fleet.md.

    ledger ── rows after the cursor ──▶ a process of its own ── PUT, If-None-Match ──▶ bucket
                                          the cursor moves ◀── the answer

The ledger is where parts wait, so nothing else has to: a bucket that is away costs nothing
but time. Nothing is deleted here because of what is there.
"""

from typing import TYPE_CHECKING

from agent.services.shipper.settings import ShipperSettings

if TYPE_CHECKING:
    from agent.ports import Service, Watched

__all__ = ["ShipperSettings", "open"]


def open(settings: ShipperSettings, watched: "Watched") -> "Service":
    """Ships the parts of the agent that is `watched`."""
    from agent.services.shipper.service import ShipperService  # noqa: PLC0415 - where it is used

    return ShipperService(settings, watched)
