"""What one agent should inspect with: a small signed JSON, and the one that stops a whole fleet.

    atac/desired/line-3:current   desired.json, desired.sig     by whom bundles are signed
    atac/stop:current             stop.json, stop.sig

On a line with products a state names a bundle for each of them, and each of these has the serial of
the state that said it first: what is said about one product is no news about the others.

The signature is over the bytes as they are, by the code that signs bundles, and is checked before
they are parsed. A serial never falls, so that an old state cannot be put back; a state expires, so
that one cannot be kept from an agent for ever.
"""

import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter

from agent.fleet.kept import Kept
from agent.fleet.oci import Registry
from agent.settings_values import Name
from agent.station.status import place_name
from engine.bundle import Sha256
from engine.errors import DesiredStateError
from engine.signature import is_signed, sign
from engine.spec import SchemaError, parse, spec

SCHEMA_VERSION: Final = 1
CURRENT: Final = "current"
_KIND: Final = "application/vnd.atac.{}.v1"
_MAX_BYTES: Final = 65_536
_SIGNATURE_BYTES: Final = 64
_REPOSITORY: Final = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*", re.ASCII)
STOP: Final = "stop"
LINE: Final = ""
"""The place of the one bundle of a line without products."""
_MOST: Final = 512
"""Of 16 products at as many cameras, and their own."""

Serial = Annotated[int, Field(ge=1, lt=1 << 53)]


def _moment(text: str) -> str:
    try:
        has_zone = datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        has_zone = False
    if not has_zone:
        raise ValueError("should be a time with its zone, such as 2026-12-24T18:00:00+00:00")
    return text


@spec
class Wanted:
    """The `bundle` that should inspect `product`, as the state with this `serial` has said.

    Without a product it is that of the whole line. `camera` is one that has a bundle of its own for
    the product. `calibration` is `own`: the agent
    sets a threshold with good parts of its own line; or the SHA-256 of a calibration in the
    registry, which was made on that line.
    """

    product: Name | None
    camera: Name | None = None
    serial: Serial
    bundle: Sha256
    calibration: Literal["own"] | Sha256 = "own"

    @property
    def place(self) -> str:
        """What it is called; `LINE` without a product."""
        return place_of(self.product, self.camera)


@spec
class Desired:
    """What `agent` should inspect with, until it `expires`.

    Either one `bundle`, with its `calibration` as `Wanted` has it, or one for each of the line's
    `products`. What a state says nothing about stays as it is.
    """

    schema_version: int = SCHEMA_VERSION
    agent: Name
    serial: Serial
    bundle: Sha256 | None = None
    calibration: Literal["own"] | Sha256 = "own"
    products: Annotated[tuple[Wanted, ...], Field(max_length=_MOST)] = ()
    expires: Annotated[str, AfterValidator(_moment)]

    def __post_init__(self) -> None:
        if (self.bundle is None) == (not self.products):
            raise ValueError("should name a bundle, or products with a bundle each")
        if len({one.place for one in self.products} - {LINE}) < len(self.products):
            raise ValueError("should name each product, and once")
        if any(one.serial > self.serial for one in self.products):
            raise ValueError("should have the highest serial of all that its products have")

    @property
    def ends(self) -> datetime:
        """When it expires."""
        return datetime.fromisoformat(self.expires)

    @property
    def wanted(self) -> dict[str, Wanted]:
        """The bundles that it names, by `Wanted.place`."""
        named = self.products
        if self.bundle is not None:
            named = (
                Wanted(
                    product=None,
                    serial=self.serial,
                    bundle=self.bundle,
                    calibration=self.calibration,
                ),
            )
        return {one.place: one for one in named}


@spec
class Stop:
    """While it `is_stopped`, no agent takes another bundle; only a later serial lifts that."""

    schema_version: int = SCHEMA_VERSION
    serial: Serial
    is_stopped: bool
    why: Annotated[str, Field(max_length=500)] = ""


Signed = TypeVar("Signed", Desired, Stop)


def repository_of(agent: str) -> str:
    """Where the desired state of an agent lies; names that a registry does not take are hashed."""
    is_name = _REPOSITORY.fullmatch(agent) is not None
    name = agent if is_name else f"x{hashlib.sha256(agent.encode()).hexdigest()[:40]}"
    return f"desired/{name}"


def place_of(product: str | None, camera: str | None) -> str:
    """What a state calls the bundle of a product, or that of a camera with one of its own for it.

    Without a product it is the `LINE`.
    """
    return LINE if product is None else place_name(product, camera)


def publish(registry: Registry, repository: str, state: Desired | Stop, key: Path) -> str:
    """Sign a state by the private key in PEM file `key`, and make it the current one."""
    noun = _noun(type(state))
    data = TypeAdapter(type(state)).dump_json(state)
    return registry.push(
        repository,
        CURRENT,
        {f"{noun}.json": data, f"{noun}.sig": sign(data, key)},
        kind=_KIND.format(noun),
    )


def current(
    registry: Registry, repository: str, kind: type[Signed], key: Path, *, option: str
) -> tuple[Signed, str] | None:
    """The current state in a repository, and its digest; `None`: there is none.

    Args:
        registry: Where it lies.
        repository: Below the fleet's.
        kind: What it should be.
        key: The public key, in PEM, of whoever may say so.
        option: Where the key was named, for errors.

    Raises:
        RegistryError: The registry is away, or gives other bytes.
        DesiredStateError: The state is not signed by that key, or is none of this version.
    """
    artifact = registry.pull(repository, CURRENT)
    if artifact is None:
        return None
    noun = _noun(kind)
    try:
        places = artifact.layers[f"{noun}.json"], artifact.layers[f"{noun}.sig"]
    except KeyError:
        raise DesiredStateError(f"{repository} in the registry holds no {noun} state") from None
    data = registry.blob(repository, places[0], limit=_MAX_BYTES)
    signature = registry.blob(repository, places[1], limit=_SIGNATURE_BYTES)
    if not is_signed(data, signature, key, option=option):
        raise DesiredStateError(
            f"the {noun} state in the registry is not signed by the key {key}: it was changed, or "
            "another key has signed"
        )
    try:
        return parse(TypeAdapter(kind), data, version=SCHEMA_VERSION, noun=f"{noun} state"), (
            artifact.digest
        )
    except SchemaError as error:
        raise DesiredStateError(f"the {noun} state in the registry {error}") from None


def require_ours(desired: Desired, agent: str) -> None:
    """Raise `DesiredStateError` unless a desired state is for this agent."""
    if desired.agent != agent:
        raise DesiredStateError(
            f"the desired state in the registry is for the agent {desired.agent!r}, and this is "
            f"{agent!r}: it was put in the wrong place"
        )


def require_newer(desired: Desired, digest: str, kept: Kept) -> None:
    """Raise `DesiredStateError` for a state from before the one that is known.

    What it says of a product must not be from before either: whoever signs a new state takes over
    what the registry has about the others.
    """
    if desired.serial < kept.serial:
        raise DesiredStateError(
            f"the desired state has serial {desired.serial}, and {kept.serial} is known already: "
            "an old one was put back"
        )
    if desired.serial == kept.serial and kept.digest not in {"", digest}:
        raise DesiredStateError(
            f"there are two desired states with serial {desired.serial}; publish one with a higher "
            "serial"
        )
    for place, wanted in desired.wanted.items():
        known = kept.bundles[place].status if place in kept.bundles else None
        if known is None or known.serial is None or place == LINE:
            continue
        is_same = (wanted.serial, wanted.bundle) == (known.serial, known.bundle)
        if wanted.serial <= known.serial and not is_same:
            raise DesiredStateError(
                f"what the desired state says of {place} has serial {wanted.serial}, and "
                f"{known.serial} is known already: an old one was put back; desire it again"
            )


def require_current(desired: Desired, now: datetime) -> None:
    """Raise `DesiredStateError` for a state that has expired."""
    if now >= desired.ends:
        raise DesiredStateError(
            f"the desired state {desired.serial} expired on {_shown(desired.ends)} UTC, and this "
            f"machine's clock says {_shown(now)}: publish it again, or set the clock"
        )


def _noun(kind: type[Desired | Stop]) -> str:
    return kind.__name__.lower()


def _shown(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"
