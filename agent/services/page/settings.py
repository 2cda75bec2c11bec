"""The settings of the operator's page."""

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from agent.services.settings import AnyServiceSettings
from agent.settings_values import AnyPath, Shifts, Text
from engine.spec import spec

_LISTEN: Final = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[\w.-]+):(?P<port>\d{1,5})", re.ASCII)


def check_place(text: str) -> str:
    """`text` where it is an address and a port; raises `ValueError` else."""
    found = _LISTEN.fullmatch(text)
    if found is None or int(found["port"]) > 65_535:
        raise ValueError("should be an address and a port, such as 127.0.0.1:8080")
    return text


@spec
class ServedSettings:
    """Where a page is, and for how long somebody who logs in may do something.

    `listen` is address and port; other addresses than this machine's own want `certificate_file`
    and `key_file`, or a proxy on this machine. After `idle_minutes` without a click a user may only
    look.
    """

    listen: Annotated[Text, AfterValidator(check_place)] = "127.0.0.1:8080"
    certificate_file: AnyPath | None = None
    key_file: AnyPath | None = None
    idle_minutes: Annotated[float, Field(ge=0.05, le=1440)] = 15.0

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file need each other")
        if self.certificate_file is None and not self.is_local:
            raise ValueError(
                f"listen: {self.listen} can be reached from other machines, where passwords must "
                "not be sent in clear; name certificate_file and key_file, or listen on 127.0.0.1"
            )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the page."""
        host = self.address[0]
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


@spec
class PageSettings(ServedSettings, AnyServiceSettings):
    """The operator's page.

    `folder` has the page's users, its history, which may be deleted at any time, and, unless
    `dataset` names another folder, the labelled frames in `labelled`; without it: `page` beside the
    ledger. `training` has the images of the first training in `good`, `defective` and
    `calibration`, and `backbone_weights` is the file of pretrained weights: both are for the next
    training. `shifts` begin at these times of day.
    """

    type: Literal["page"] = "page"
    folder: AnyPath | None = None
    dataset: AnyPath | None = None
    training: AnyPath | None = None
    backbone_weights: AnyPath | None = None
    shifts: Shifts = ("06:00", "14:00", "22:00")

    @property
    def written_to(self) -> Mapping[str, Path]:
        named = {"folder": self.folder, "dataset": self.dataset}
        return {key: place for key, place in named.items() if place is not None}

    def place(self, ledger: Path) -> Path:
        """The folder of the page whose agent has this ledger."""
        return self.folder or ledger.parent / "page"

    def labelled(self, ledger: Path) -> Path:
        """The folder of the labelled frames."""
        return self.dataset or self.place(ledger) / "labelled"
