"""The settings of the shipper."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from agent.secret import read_secret
from agent.services.settings import AnyServiceSettings
from agent.settings_values import AnyPath, Name, Text
from engine.spec import spec

_ENDPOINT: Final = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+")
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_SITE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def _endpoint(text: str) -> str:
    if not _ENDPOINT.fullmatch(text):
        raise ValueError("should be an address without a path, such as https://s3.plant.example")
    return text


def _bucket(text: str) -> str:
    if not _BUCKET.fullmatch(text):
        raise ValueError("should be 3 to 63 small letters, digits, dots and hyphens")
    return text


def _site(text: str) -> str:
    if not _SITE.fullmatch(text):
        raise ValueError("should be letters, digits, dots, hyphens and underscores: it is in names")
    return text


@spec
class BucketSettings:
    """A bucket and the key to it.

    `endpoint` is the address of an S3 service; without it that of AWS in `region`. The two parts of
    the key are the content of files or of environment variables.
    """

    bucket: Annotated[Name, AfterValidator(_bucket)]
    endpoint: Annotated[Text, AfterValidator(_endpoint)] | None = None
    region: Text = "us-east-1"
    access_key_file: AnyPath | None = None
    access_key_variable: Text | None = None
    secret_key_file: AnyPath | None = None
    secret_key_variable: Text | None = None
    ca_file: AnyPath | None = None

    def __post_init__(self) -> None:
        for name in ("access_key", "secret_key"):
            if not getattr(self, f"{name}_file") and not getattr(self, f"{name}_variable"):
                raise ValueError(f"give {name}_file or {name}_variable")

    def keys(self, place: str) -> dict[str, str]:
        """Both parts of the key, as they are now; errors name them below `place`."""
        found = {}
        for name in ("access_key", "secret_key"):
            file, variable = (getattr(self, f"{name}_{where}") for where in ("file", "variable"))
            found[name] = read_secret(f"{place}.{name}", file=file, variable=variable) or ""
        return found


@spec
class ShipperSettings(BucketSettings, AnyServiceSettings):
    """What goes to a bucket, and how much.

    Every `every_minutes` what is new goes, at `max_kbit_s` at most, and of each hour
    `frames_an_hour` frames of alarms, doubtful and audited parts; those of labelled parts all go.
    `site` is in the names of objects. `folder` has the cursor; without it: `shipper` beside the
    ledger.
    """

    type: Literal["shipper"] = "shipper"
    site: Annotated[Name, AfterValidator(_site)]
    every_minutes: Annotated[float, Field(ge=0.05, le=1440)] = 60.0
    max_kbit_s: Annotated[int, Field(ge=64, le=10_000_000)] = 4000
    frames_an_hour: Annotated[int, Field(ge=0, le=3600)] = 8
    folder: AnyPath | None = None

    @property
    def written_to(self) -> Mapping[str, Path]:
        """The cursor's folder, where it is named."""
        return {} if self.folder is None else {"folder": self.folder}
