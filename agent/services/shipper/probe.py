"""Whether a bucket takes what the shipper will put there, before the line depends on it."""

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.record.evidence_files import check_folder
from agent.record.schema import read_only
from agent.services.shipper.names import probe_name
from agent.services.shipper.service import folder_of
from agent.services.shipper.settings import ShipperSettings
from agent.services.shipper.shipper import read_progress
from agent.services.shipper.store import S3Address, S3Store, StoreError

if TYPE_CHECKING:
    from agent.settings import Config

_CLOCKS: Final = timedelta(minutes=1)
_PROBE: Final = b"agent doctor was here\n"


def probe(settings: ShipperSettings, config: "Config") -> tuple[str, bool]:
    """What would become of parts, in one line; `False`: something should be done.

    Puts a small object of the agent's own into the bucket, and tries to put it once more: the key
    may not remove it. Raises `ConfigurationError` where the key cannot be read.
    """
    folder = folder_of(settings, config.ledger.path)
    if (fault := check_folder(folder)) is not None:
        return f"{fault}; the cursor could not be kept", False
    address = S3Address.of(settings, "services")
    store = S3Store(address, max_bytes_s=125.0 * settings.max_kbit_s)
    name = probe_name(settings.site, config.agent.id)
    try:
        is_new = store.put(name, _PROBE)
        if is_new and store.put(name, _PROBE):
            remedy = "it ignores If-None-Match, and parts could be there twice"
            return f"{address.title}: {remedy}; update that service", False
    except StoreError as error:
        return str(error), False
    waiting = _waiting(config.ledger.path, folder)
    said = f"{address.title} takes {name}, and takes it once{waiting}"
    if store.date is not None and (apart := abs(datetime.now(UTC) - store.date)) > _CLOCKS:
        minutes = apart.total_seconds() / 60
        said += f"; this machine's clock and the bucket's differ by {minutes:.0f} min: set it"
        return said, False
    return said, True


def _waiting(ledger: Path, folder: Path) -> str:
    """How many parts are still to be shipped, where no agent has the ledger open."""
    newest = max(read_progress(folder).positions.values(), default=0)
    if not ledger.is_file():
        return ""
    try:
        with read_only(ledger) as connection:
            asked = "SELECT count(*) FROM triggers WHERE position > ?"
            (count,) = connection.execute(asked, (newest,)).fetchone()
    except sqlite3.Error:
        return ""
    return f"; parts that wait for it: {count}"
