"""The bucket: what is put there, and in one line why it cannot be."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Protocol, Self

import boto3
from botocore.awsrequest import AWSPreparedRequest
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    SSLError,
)

from agent.services.shipper.settings import BucketSettings

_CONNECT_S: Final = 10.0
_ANSWER_S: Final = 60.0
_BLOCK: Final = 16_384
_THERE: Final = frozenset({"PreconditionFailed", "412"})
_REFUSED: Final = {
    "AccessDenied": "its key may not write there; allow s3:PutObject",
    "AllAccessDisabled": "its key may not write there; allow s3:PutObject",
    "AuthorizationHeaderMalformed": "it is in another region; correct region",
    "IllegalLocationConstraintException": "it is in another region; correct region",
    "InvalidAccessKeyId": "its key is not known there; correct access_key and secret_key",
    "NoSuchBucket": "there is no such bucket; make it, or correct bucket",
    "PermanentRedirect": "it is in another region; correct region",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "SignatureDoesNotMatch": "its secret key is another; correct secret_key",
}
_CLIPPED: Final = 160


class StoreError(Exception):
    """Nothing can be put just now; the message says why, and never a key."""


class Store(Protocol):
    """Where objects go."""

    def put(self, name: str, data: bytes) -> bool:
        """Put an object unless there is one of this name; `False`: there is one.

        Raises `StoreError` where it cannot.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Address:
    """A bucket and a key to it; of `endpoint`, without one of AWS in `region`."""

    bucket: str
    endpoint: str | None
    region: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    ca_file: Path | None = None

    @classmethod
    def of(cls, settings: BucketSettings, place: str) -> Self:
        """What settings at `place` name; raises `ConfigurationError` where a key cannot be read."""
        return cls(
            bucket=settings.bucket,
            endpoint=settings.endpoint,
            region=settings.region,
            ca_file=settings.ca_file,
            **settings.keys(place),
        )

    @property
    def title(self) -> str:
        """Names it in messages."""
        return f"bucket {self.bucket} at {self.endpoint or f'AWS in {self.region}'}"

    def client(self) -> Any:
        """boto3's client, which has connected to nothing; it tries once and waits in limits."""
        session = boto3.session.Session(
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
        )
        return session.client(
            "s3",
            endpoint_url=self.endpoint,
            verify=None if self.ca_file is None else str(self.ca_file),
            config=Config(
                connect_timeout=_CONNECT_S,
                read_timeout=_ANSWER_S,
                retries={"total_max_attempts": 1},  # the shipper has its own
                request_checksum_calculation="when_required",  # not every S3 knows the others
                response_checksum_validation="when_required",
                # Names of buckets in host names are for AWS; an endpoint may have one name alone.
                s3={"addressing_style": "path" if self.endpoint else "auto"},
            ),
        )


class S3Store:
    """A bucket by its address; sends `max_bytes_s` at most."""

    def __init__(self, address: S3Address, *, max_bytes_s: float) -> None:
        self._address = address
        self._max_bytes_s = max_bytes_s
        self.date: datetime | None = None
        """What the bucket's clock said last."""
        self._client = address.client()
        self._client.meta.events.register("before-send.s3.PutObject", _sending)

    def put(self, name: str, data: bytes) -> bool:
        """Put an object unless there is one of this name; `False`: there is one."""
        try:
            answer = self._client.put_object(
                Bucket=self._address.bucket,
                Key=name,
                Body=_Paced(data, self._max_bytes_s),
                IfNoneMatch="*",
            )
            self._look_at_clock(answer)
        except ClientError as error:
            self._look_at_clock(error.response)
            if error.response["Error"]["Code"] in _THERE:
                return False
            raise StoreError(f"{self._address.title}: {refusal(error)}") from None
        except (BotoCoreError, OSError, ValueError) as error:
            raise StoreError(f"{self._address.title}: {unreached(error)}") from None
        return True

    def _look_at_clock(self, answer: Mapping[str, Any]) -> None:
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        with suppress(ValueError):
            self.date = parsedate_to_datetime(headers.get("date", "")).astimezone(UTC)


class _Paced(BytesIO):
    """Bytes that are read no faster than they may be sent, once they are sent."""

    def __init__(self, data: bytes, max_bytes_s: float) -> None:
        super().__init__(data)
        self._max_bytes_s = max_bytes_s
        self.is_sent = False

    def read(self, size: int | None = -1, /) -> bytes:
        if not self.is_sent:  # it is only signed
            return super().read(size)
        block = super().read(_BLOCK if size is None or size < 0 else min(size, _BLOCK))
        time.sleep(len(block) / self._max_bytes_s)
        return block


def _sending(request: AWSPreparedRequest, **_: object) -> None:
    if isinstance(request.body, _Paced):
        request.body.is_sent = True


def refusal(error: ClientError) -> str:
    """Why S3 refuses, and what to do."""
    found = error.response["Error"]
    code = str(found.get("Code", ""))
    if (said := _REFUSED.get(code)) is not None:
        return f"{said} ({code})"
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
    words = " ".join(str(found.get("Message", "")).split())[:_CLIPPED]
    return f"answers {status} {code}: {words}"


def unreached(error: Exception) -> str:
    """Why there is no answer, and what to do."""
    if isinstance(error, SSLError):
        return "its certificate cannot be trusted; name ca_file, or correct endpoint"
    if isinstance(error, EndpointConnectionError | ConnectTimeoutError):
        return "nobody answers there; check endpoint and network"
    words = " ".join(str(error).split())[:_CLIPPED]
    return f"{type(error).__name__}: {words}; check endpoint and network"
