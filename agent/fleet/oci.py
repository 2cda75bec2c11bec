"""A registry of the OCI distribution API. Nothing that it gives is believed: we hash it ourselves.

    tag or digest ─▶ manifest ─▶ descriptors ─▶ blobs, by their digests

Every wait has an end, and every answer a largest size. What is away, refuses or is no registry is a
`RegistryError` of one line.
"""

import base64
import hashlib
import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlencode, urljoin

from agent.fleet.settings import RegistrySettings
from agent.secret import read_secret
from engine.errors import ConfigurationError, RegistryError, without_secrets
from engine.regular_file import file_sha256

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
TITLE: Final = "org.opencontainers.image.title"
_EMPTY: Final = b"{}"
_EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
_MANIFEST_MAX_BYTES: Final = 4_000_000
_WAIT_S: Final = 10.0
_SLOWEST: Final = 2_000
"""Bytes a second: a registry that gives less for a minute hangs."""
_PATIENCE_S: Final = 60.0
_CHUNK: Final = 1 << 16
_CHALLENGE: Final = re.compile(r'(\w+)="([^"]*)"')
_SHA256: Final = re.compile("sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A manifest as it was pulled: its own `digest`, and those of its layers by their titles."""

    digest: str
    layers: Mapping[str, str]


class Registry:
    """The repositories of one fleet; used by one thread.

    Args:
        settings: Where they are.
        password: In place of what `settings` name.
        wait_s: How long the registry may be silent.
    """

    def __init__(
        self,
        settings: RegistrySettings,
        *,
        password: str | None = None,
        wait_s: float = _WAIT_S,
    ) -> None:
        self._settings = settings
        self._password = password
        self._wait_s = wait_s
        self._authorization: str | None = None
        self.date: datetime | None = None
        """What the registry's clock said last."""
        try:
            context = ssl.create_default_context(cafile=settings.ca_file)
        except (OSError, ssl.SSLError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise ConfigurationError(
                "registry.ca_file", str(settings.ca_file), f"cannot be used ({why})"
            ) from None
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=context), urllib.request.ProxyHandler()
        )

    @classmethod
    def of(cls, settings: RegistrySettings, *, wait_s: float = _WAIT_S) -> "Registry":
        """The registry, with the password that `settings` name."""
        return cls(settings, password=password_of(settings), wait_s=wait_s)

    # ---- pull

    def head(self, repository: str, reference: str) -> str | None:
        """The digest that the registry names for a manifest; `None`: there is none."""
        try:
            with closing(self._manifest("HEAD", repository, reference)) as answer:
                self._check_type(answer)
                return str(answer.headers.get("Docker-Content-Digest", ""))
        except _MissingError:
            # An answer to HEAD has no body to tell a registry by.
            return None if self.pull(repository, reference) is None else ""

    def pull(self, repository: str, reference: str) -> Artifact | None:
        """The manifest at a tag or digest; `None`: there is none."""
        try:
            with closing(self._manifest("GET", repository, reference)) as answer:
                self._check_type(answer)
                data = self._read(answer, _MANIFEST_MAX_BYTES)
        except _MissingError:
            return None
        digest = digest_of(data)
        if _SHA256.fullmatch(reference):
            self._check(reference, digest)
        try:
            layers = {
                str(layer.get("annotations", {}).get(TITLE)): str(layer["digest"])
                for layer in json.loads(data)["layers"]
            }
        except (ValueError, TypeError, KeyError, AttributeError):
            raise self._wrong(f"{repository}:{reference} is no manifest of ours") from None
        return Artifact(digest=digest, layers=layers)

    def blob(self, repository: str, digest: str, *, limit: int) -> bytes:
        """The bytes of a blob, of the digest that was asked for."""
        with closing(self._blob(repository, digest)) as answer:
            data = self._read(answer, limit)
        self._check(digest, digest_of(data))
        return data

    def fetch(
        self,
        repository: str,
        digest: str,
        to: Path,
        *,
        limit: int,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Write a blob into a file, which is gone again unless it has the digest.

        Args:
            repository: Below the fleet's.
            digest: The blob's.
            to: The file.
            limit: How many bytes it may have.
            meanwhile: Called after each piece, as this may take long.

        Raises:
            RegistryError: The registry is away, or gives other bytes.
            OSError: The disk refuses.
        """
        found = hashlib.sha256()
        try:
            with closing(self._blob(repository, digest)) as answer, to.open("wb") as file:
                for piece in self._pieces(answer, limit):
                    found.update(piece)
                    file.write(piece)
                    meanwhile()
                file.flush()
                os.fsync(file.fileno())
            self._check(digest, f"sha256:{found.hexdigest()}")
        except BaseException:
            with suppress(OSError):
                to.unlink(missing_ok=True)
            raise

    # ---- push

    def push(
        self, repository: str, tag: str, files: Mapping[str, Path | bytes], *, kind: str
    ) -> str:
        """Put files under a tag, and give the digest of their manifest.

        Args:
            repository: Below the fleet's.
            tag: Names the manifest; what it named before is replaced.
            files: Contents by title.
            kind: The artifact's media type.
        """
        self._push_blob(repository, _EMPTY)
        layers = []
        for title, content in files.items():
            digest, size = self._push_blob(repository, content)
            layers.append(
                {
                    "mediaType": "application/octet-stream",
                    "digest": digest,
                    "size": size,
                    "annotations": {TITLE: title},
                }
            )
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": kind,
            "config": {"mediaType": _EMPTY_TYPE, "digest": digest_of(_EMPTY), "size": len(_EMPTY)},
            "layers": layers,
        }
        data = json.dumps(manifest, separators=(",", ":")).encode()
        path = f"{self._place(repository)}/manifests/{tag}"
        with closing(self._ask("PUT", path, body=data, headers={"Content-Type": MANIFEST_TYPE})):
            return digest_of(data)

    def _push_blob(self, repository: str, content: Path | bytes) -> tuple[str, int]:
        if isinstance(content, bytes):
            digest, size = digest_of(content), len(content)
        else:
            size = content.stat().st_size
            digest = f"sha256:{file_sha256(content, limit=size)}"
        place = self._place(repository)
        with suppress(_MissingError), closing(self._ask("HEAD", f"{place}/blobs/{digest}")):
            return digest, size
        with closing(self._ask("POST", f"{place}/blobs/uploads/", body=b"")) as answer:
            where = answer.headers.get("Location")
        if not where:
            raise self._wrong("gives no place to upload to")
        where = urljoin(self._settings.server, where)
        where += ("&" if "?" in where else "?") + urlencode({"digest": digest})
        headers = {"Content-Type": "application/octet-stream"}
        with closing(self._ask("PUT", where, body=content, headers=headers)):
            return digest, size

    # ---- over HTTP

    def _place(self, repository: str) -> str:
        return f"/v2{self._settings.prefix}/{repository}"

    def _manifest(self, method: str, repository: str, reference: str) -> http.client.HTTPResponse:
        path = f"{self._place(repository)}/manifests/{reference}"
        return self._ask(method, path, headers={"Accept": MANIFEST_TYPE})

    def _blob(self, repository: str, digest: str) -> http.client.HTTPResponse:
        if _SHA256.fullmatch(digest) is None:
            raise self._wrong(f"{digest!r} in {repository} is no digest")
        try:
            return self._ask("GET", f"{self._place(repository)}/blobs/{digest}")
        except _MissingError:
            raise self._wrong(f"has no {digest} in {repository}") from None

    def _check_type(self, answer: http.client.HTTPResponse) -> None:
        kind = answer.headers.get_content_type()
        if kind != MANIFEST_TYPE:
            raise self._wrong(f"answers with {kind}, and no manifest: is this a registry?")

    def _read(self, answer: http.client.HTTPResponse, limit: int) -> bytes:
        return b"".join(self._pieces(answer, limit))

    def _pieces(self, answer: http.client.HTTPResponse, limit: int) -> Iterator[bytes]:
        """An answer piece by piece, in bounded time and size."""
        since, counted = time.monotonic(), 0
        while piece := self._piece(answer):
            limit -= len(piece)
            if limit < 0:
                raise self._wrong("gives more than can be meant")
            counted += len(piece)
            passed_s = time.monotonic() - since
            if passed_s > _PATIENCE_S:
                if counted < _SLOWEST * passed_s:
                    raise self._wrong(f"gives less than {_SLOWEST} bytes a second")
                since, counted = time.monotonic(), 0
            yield piece
        if answer.length:
            raise self._wrong("ended in the middle of an answer")

    def _piece(self, answer: http.client.HTTPResponse) -> bytes:
        try:
            return answer.read1(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            self._failed(error)

    def _ask(
        self,
        method: str,
        path: str,
        *,
        body: Path | bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        """One request; what the registry wants to know of us is told when it asks for it."""
        try:
            return self._sent(method, path, body, headers or {})
        except _ChallengedError as asked:
            self._authorization = self._answer_to(asked.challenge)
        try:
            return self._sent(method, path, body, headers or {})
        except _ChallengedError:
            raise self._refused() from None

    def _sent(
        self, method: str, path: str, body: Path | bytes | None, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        request = urllib.request.Request(  # noqa: S310 - the settings take http and https only
            urljoin(self._settings.server, path), method=method, headers=dict(headers)
        )
        if self._authorization is not None:
            # Not where we are redirected to.
            request.add_unredirected_header("Authorization", self._authorization)
        if isinstance(body, Path):
            with body.open("rb") as file:
                request.data = file
                request.add_header("Content-Length", str(body.stat().st_size))
                return self._opened(request)
        request.data = body
        return self._opened(request)

    def _opened(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        try:
            answer: http.client.HTTPResponse = self._opener.open(request, timeout=self._wait_s)
        except urllib.error.HTTPError as error:
            with error:
                self._told(error)
        except (OSError, http.client.HTTPException) as error:
            self._failed(error)
        with suppress(ValueError):
            self.date = parsedate_to_datetime(answer.headers.get("Date", "")).astimezone(UTC)
        return answer

    def _told(self, error: urllib.error.HTTPError) -> NoReturn:
        """An answer that is no success."""
        challenge = error.headers.get("WWW-Authenticate", "")
        if error.code == http.HTTPStatus.UNAUTHORIZED and challenge:
            raise _ChallengedError(challenge)
        codes, data = "", b""
        with suppress(OSError, http.client.HTTPException):
            data = error.read(_CHUNK)
        with suppress(ValueError, TypeError, KeyError):
            codes = ", ".join(str(each["code"]) for each in json.loads(data)["errors"])
        if error.code in {http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN}:
            raise self._refused()
        if error.code == http.HTTPStatus.NOT_FOUND:
            # A registry says so in its own words, or to HEAD without any.
            if codes or not data:
                raise _MissingError
            raise self._wrong("answers as a web page does: is this a registry?")
        raise self._wrong(f"answers {error.code} {codes or error.reason}")

    def _failed(self, error: Exception) -> NoReturn:
        why: object = getattr(error, "reason", error)
        if isinstance(why, TimeoutError) or "timed out" in str(why):
            raise self._wrong(f"does not answer within {self._wait_s:g} s") from None
        said = getattr(why, "strerror", None) or str(why) or type(why).__name__
        if isinstance(why, ssl.SSLError):
            raise self._wrong(f"cannot be trusted, or speaks no TLS ({said})") from None
        if isinstance(error, http.client.HTTPException):
            raise self._wrong(f"speaks no HTTP, or ended early ({said})") from None
        raise self._wrong(f"cannot be reached ({said})") from None

    def _answer_to(self, challenge: str) -> str:
        """The `Authorization` that a challenge asks for: the password, or a token for it."""
        scheme, _, rest = challenge.partition(" ")
        asked = dict(_CHALLENGE.findall(rest))
        basic = None
        if self._settings.user is not None:
            pair = f"{self._settings.user}:{self._password or ''}"
            basic = f"Basic {base64.b64encode(pair.encode()).decode()}"
        if scheme.lower() == "basic" and basic is not None:
            return basic
        if scheme.lower() != "bearer" or not asked.get("realm", "").startswith(
            ("https://", self._settings.server)
        ):
            raise self._refused()
        wanted = {name: asked[name] for name in ("service", "scope") if name in asked}
        request = urllib.request.Request(f"{asked['realm']}?{urlencode(wanted)}")  # noqa: S310
        if basic is not None:
            request.add_unredirected_header("Authorization", basic)
        try:
            with closing(self._opened(request)) as answer:
                said: dict[str, Any] = json.loads(self._read(answer, _MANIFEST_MAX_BYTES))
            return f"Bearer {said.get('token') or said['access_token']}"
        except (_ChallengedError, _MissingError, ValueError, TypeError, KeyError, AttributeError):
            raise self._refused() from None

    # ---- what is wrong

    def _wrong(self, what: str) -> RegistryError:
        return RegistryError(f"registry {self._settings.address}: {without_secrets(what)}")

    def _refused(self) -> RegistryError:
        return self._wrong("refuses access; check user, password and what this user may do")

    def _check(self, asked: str, found: str) -> None:
        if found != asked:
            raise RegistryError(
                f"registry {self._settings.address}: gives other bytes ({found[:19]}…) than those "
                f"of {asked[:19]}…: they were altered or damaged; nothing of them is used",
                is_altered=True,
            )


class _MissingError(Exception):
    """There is no such thing in the registry."""


class _ChallengedError(Exception):
    """The registry wants to know who asks."""

    def __init__(self, challenge: str) -> None:
        self.challenge = challenge
        super().__init__(challenge)


def password_of(settings: RegistrySettings) -> str | None:
    """The password that `settings` name."""
    return read_secret(
        "registry.password", file=settings.password_file, variable=settings.password_variable
    )


def digest_of(data: bytes) -> str:
    """The digest by which a registry names these bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
