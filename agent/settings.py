"""`agent.yaml` → `Config`: checked once, at the start; what is wrong is said in one line."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from agent.cameras.settings import CAMERAS, AnyCameraSettings, Features, LineSettings
from agent.services.settings import SERVICES, AnyServiceSettings
from agent.settings_errors import explained
from agent.settings_file import Written, read_yaml
from agent.settings_places import found_places
from agent.settings_values import AnyPath, Count, Days, Megabytes, Name, Share
from agent.sinks.settings import SINKS, AnySinkSettings
from agent.triggers.settings import (
    TRIGGERS,
    AnyTriggerSettings,
    SinkTriggerSettings,
    WindowSettings,
)
from engine.backends.base import MAX_PIXELS, BackendChoice, FallbackName, PrecisionChoice
from engine.errors import ConfigurationError
from engine.spec import spec


def _identifier(text: str) -> str:
    if set(text) & set("/+#:") or text.startswith("$"):
        raise ValueError("write a name without / + # or :, and no $ at its start")
    return text


@spec
class AgentSettings:
    """Who this agent is: `id` is part of every topic and of every alarm's id."""

    id: Annotated[Name, AfterValidator(_identifier)]


@spec
class BundleSettings:
    """Which model inspects, and what runs it.

    `auto` is the backend and the precision that the threshold was set with; `agent calibrate`,
    which sets it, takes the fastest. A backend that cannot be used stops the agent, unless
    `fallback` names another.
    """

    path: AnyPath
    precision: PrecisionChoice = "auto"
    require_signature: AnyPath | None = None
    """The public key that must have signed the manifest; without it none has to."""
    backend: BackendChoice = "auto"
    fallback: FallbackName | None = None
    max_megapixels: Annotated[float, Field(ge=0.01, le=1000)] = MAX_PIXELS / 1e6
    """A GPU keeps memory for frames up to this size; parts with larger ones end as ERROR."""


@spec
class ProductCameraSettings:
    """What one camera, the only one unless it is named, has for a product.

    These are `features` besides its own, written in this order, and a `bundle` where it sees
    something else of the product than the other cameras do.
    """

    name: Name | None = None
    features: Features = ()
    bundle: BundleSettings | None = None


@spec
class ProductSettings:
    """One of the products that the line makes, and the bundle that inspects it.

    A PLC calls it by its `number`, where it has one. `cameras`, or `camera` where there is one,
    have these features besides their own while the line makes it.
    """

    name: Annotated[Name, AfterValidator(_identifier)]
    bundle: BundleSettings
    number: Annotated[int, Field(ge=0, le=65_535)] | None = None
    cameras: tuple[ProductCameraSettings, ...] = ()


def _saying(settings: AnyTriggerSettings) -> AnyTriggerSettings:
    says_it = (
        isinstance(settings, WindowSettings)
        and settings.names_products
        and not settings.counts_parts
    )
    if not says_it:
        raise ValueError(
            "should say what the line makes: modbus with product_at, or opcua with product_node, "
            "and no count"
        )
    return settings


@spec
class LedgerSettings:
    """The file that holds every trigger's end and the messages still to be sent.

    Parts go `keep_days` after their verdict, or earlier where the file would outgrow `max_mb`;
    what was delivered goes first. `memory_mb` bounds what waits in memory while the disk is full
    or away.
    """

    path: AnyPath = Path("ledger.sqlite")
    keep_days: Days = 30.0
    max_mb: Annotated[Megabytes, Field(ge=32)] = 1000
    memory_mb: Annotated[Megabytes, Field(le=4096)] = 64

    @property
    def keep_ns(self) -> int:
        """How long a part is kept, in nanoseconds."""
        return round(self.keep_days * 86_400e9)

    @property
    def max_bytes(self) -> int:
        """How large the file may become."""
        return self.max_mb * 1_000_000


@spec
class EvidenceSettings:
    """What is kept of parts that were rejected, and of good ones that nearly were.

    `thumbnails` go with alarms over MQTT. In `folder`, where one is named, whole frames are kept:
    of every alarm, and of each OK part whose score is less than `near` times the threshold below
    it, and of the share `audit` of all parts, drawn at random, so that people may judge parts that
    no verdict has chosen. The oldest go when they are older than `keep_days`, or more than
    `max_files`, or larger than `max_mb` together.
    """

    thumbnails: bool = True
    folder: AnyPath | None = None
    near: Share = 0.1
    audit: Share = 0.002
    keep_days: Days = 30.0
    max_files: Annotated[Count, Field(le=1_000_000)] = 10_000
    max_mb: Annotated[Megabytes, Field(ge=10)] = 1000


@spec
class CheckSettings:
    """Golden samples: parts that are known, shown to the cameras at the start of a shift.

    A check shows `good` good and then `defective` defective ones. Its signed protocol is kept in
    `folder`, which lies beside agent.yaml unless it is named. Where a check is `required`, there is
    a fault until one has passed with the bundle, the threshold and the cameras of now, in the last
    `every_h` hours.
    """

    required: bool = False
    folder: AnyPath = Path("checks")
    good: Annotated[Count, Field(le=100)] = 2
    defective: Annotated[Count, Field(le=100)] = 2
    every_h: Annotated[float, Field(ge=0.1, le=100_000)] = 24.0


@spec
class Config:
    """All of `agent.yaml`; paths are absolute or relative to the working directory.

    A single camera may be written as `camera` there, in place of a list of one, and a single
    MQTT broker as `mqtt` in place of `sinks`. The operator's page may be written as `page`.
    A line that makes several `products` names them in place of `bundle`, which is the first one's;
    `product_from` is what says which of them it makes, where that is a PLC.
    """

    agent: AgentSettings
    bundle: BundleSettings
    cameras: Annotated[tuple[Annotated[AnyCameraSettings, CAMERAS], ...], Field(min_length=1)]
    sinks: Annotated[tuple[Annotated[AnySinkSettings, SINKS], ...], Field(min_length=1)]
    services: tuple[Annotated[AnyServiceSettings, SERVICES], ...] = ()
    line: LineSettings = LineSettings()
    ledger: LedgerSettings = LedgerSettings()
    evidence: EvidenceSettings = EvidenceSettings()
    check: CheckSettings = CheckSettings()
    products: Annotated[tuple[ProductSettings, ...], Field(max_length=16)] = ()
    product_from: Annotated[AnyTriggerSettings, TRIGGERS, AfterValidator(_saying)] | None = None

    @property
    def lines(self) -> dict[str, LineSettings]:
        """What the line expects of each camera's parts, by the camera's name."""
        return {camera.name: camera.line or self.line for camera in self.cameras}

    @property
    def numbers(self) -> dict[str, str]:
        """What a PLC calls the products, in digits, and their names."""
        return {
            str(product.number): product.name
            for product in self.products
            if product.number is not None
        }

    def features(self, camera: str) -> dict[str, Features]:
        """What a camera has besides its own features, by product; nothing where all are alike."""
        found = {
            product.name: tuple(
                pair
                for one in product.cameras
                if one.name in {None, camera}
                for pair in one.features
            )
            for product in self.products
        }
        return found if any(found.values()) else {}

    def views(self, product: ProductSettings) -> dict[str, BundleSettings]:
        """The bundles that cameras have of their own for a product."""
        return {
            camera.name: one.bundle
            for camera in self.cameras
            for one in product.cameras
            if one.name in {None, camera.name} and one.bundle is not None
        }

    def making(self, product: str | None, camera: str | None = None) -> "Config":
        """The same where the line makes nothing but `product`; `None`: the first one.

        It has the cameras that share the product's bundle, or only `camera` with the bundle that it
        has for this product. Raises `ConfigurationError` where there is no such product or camera.
        """
        if camera is not None and camera not in self.lines:
            remedy = f"name one of {', '.join(self.lines)}"
            raise ConfigurationError("--camera", camera, remedy)
        if product is None and not self.products:
            shown = tuple(one for one in self.cameras if camera in {None, one.name})
            return dataclasses.replace(self, cameras=shown)
        names = [one.name for one in self.products]
        if product is not None and product not in names:
            remedy = f"write {' or '.join(names)}" if names else "there are no products to choose"
            raise ConfigurationError("--product", product, remedy)
        one = self.products[0 if product is None else names.index(product)]
        views = self.views(one)
        shown = tuple(
            each
            for each in self.cameras
            if (each.name == camera if camera is not None else each.name not in views)
        )
        if not shown:
            remedy = f"each camera has a bundle of its own; name one of {', '.join(views)}"
            raise ConfigurationError("--camera", camera, remedy)
        bundle = one.bundle if camera is None else views.get(camera, one.bundle)
        return dataclasses.replace(self, bundle=bundle, products=(one,), cameras=shown)

    def inspected(
        self, product: str | None, camera: str | None
    ) -> tuple[str | None, frozenset[str]]:
        """Whose parts the bundle of `making` inspects: which product's, and at which cameras.

        `None` and no camera: those of all.
        """
        made = self.making(product, camera)
        names = frozenset(one.name for one in made.cameras)
        return (
            made.products[0].name if made.products else None,
            names if len(names) < len(self.cameras) else frozenset(),
        )

    def promoted(self, product: str | None, camera: str | None) -> BundleSettings:
        """The bundle whose place another one may take: of `product`, where the line makes several.

        `camera` is one that has a bundle of its own for it. Raises `ConfigurationError` where this
        is not exactly one.
        """
        names = [one.name for one in self.products]
        known = f"write {' or '.join(names)}" if names else "the configuration has no products"
        if product is None and names:
            remedy = f"is missing, as each product has a bundle of its own; {known}"
            raise ConfigurationError("product", None, remedy)
        if product is not None and product not in names:
            raise ConfigurationError("product", product, known)
        found, at = self.bundle, None
        if product is not None:
            one = self.products[names.index(product)]
            found, at = one.bundle, self.views(one)
            known = f"write {' or '.join(at)}" if at else "no camera has a bundle of its own"
        if camera is not None:
            if not at or camera not in at:
                raise ConfigurationError("camera", camera, known)
            found = at[camera]
        places = [each.bundle.path for each in self.products]
        places += [own.path for each in self.products for own in self.views(each).values()]
        if places.count(found.path) > 1:
            remedy = "is the bundle of several products or cameras; give each a folder of its own"
            raise ConfigurationError("bundle.path", str(found.path), remedy)
        return found

    @property
    def longest_deadline_s(self) -> float | None:
        """The longest of the cameras' deadlines, in seconds; `None` where one has none."""
        deadlines = [line.deadline_s for line in self.lines.values()]
        known = [deadline for deadline in deadlines if deadline is not None]
        return max(known) if len(known) == len(deadlines) else None


_OF_CAMERA: Final = ("TriggerMode", "TriggerSource")
_CONFIG: Final = TypeAdapter(Config)


def load_config(path: Path) -> Config:
    """Read a configuration; relative paths in it start at its own folder.

    Raises `ConfigurationError`, naming key, value, remedy, file and line, for the first thing
    that cannot work. Opens nothing but the file.
    """
    written = read_yaml(path)
    try:
        # Through JSON, where strictness knows paths and lists but takes no "5" for a number.
        config = _CONFIG.validate_json(json.dumps(_with_bundle(written)), strict=True)
    except ValidationError as error:
        raise explained(error, written, Config) from None
    _check_names(config, written)
    _check_products(config, written)
    _check_sources(config, written)
    placed: Config = anchored(config, path.parent)
    _check_places(placed, written)
    return placed


def _with_bundle(written: Written) -> dict[str, Any]:
    """What is written, with the first product's bundle as the one that the line begins with."""
    listed = written.listed()
    products = listed.get("products")
    if products:
        if "bundle" in listed:
            remedy = "stands beside products, each of which has its own; remove it here"
            raise written.refused(("bundle",), listed["bundle"], remedy)
        first = products[0] if isinstance(products, list) else None
        if isinstance(first, dict) and "bundle" in first:
            listed["bundle"] = first["bundle"]
    return listed


def _check_names(config: Config, written: Written) -> None:
    for long, all_named in (
        ("cameras", config.cameras),
        ("sinks", config.sinks),
        ("products", config.products),
    ):
        names = [each.name for each in all_named]
        for index, name in enumerate(names):
            if name in names[:index]:
                key = tuple(map(str, written.key((long, index, "name"))))
                noun = long.removesuffix("s")
                raise written.refused(key, name, f"another {noun} has this name; give each its own")


def _check_products(config: Config, written: Written) -> None:
    """Refuse products that a PLC cannot tell apart, and one that is asked where there are none."""
    if config.product_from is not None and not config.products:
        key, kind = ("product_from",), config.product_from.type
        raise written.refused(key, kind, "names products, and there are none; add them")
    known = {product.name: product.name for product in config.products}
    for index, product in enumerate(config.products):
        number = None if product.number is None else str(product.number)
        if number is not None and known.setdefault(number, product.name) != product.name:
            remedy = f"is product {known[number]} already; give each its own"
            raise written.refused(("products", str(index), "number"), product.number, remedy)
        for place, one in enumerate(product.cameras):
            _check_camera(config, written, ("products", index, "cameras", place), one)
    for camera in config.cameras:
        _check_features(config, written, camera)


def _check_camera(
    config: Config, written: Written, at: tuple[str | int, ...], one: ProductCameraSettings
) -> None:
    """Refuse features of a product for a camera that there is not, or that has none."""
    names = [camera.name for camera in config.cameras]
    key = tuple(map(str, written.key((*at, "name"))))
    if one.name is None and len(names) > 1:
        raise written.refused(key, None, f"is missing; write {' or '.join(names)}")
    if one.name is not None and one.name not in names:
        raise written.refused(key, one.name, f"is no camera; write {' or '.join(names)}")
    camera = config.cameras[0 if one.name is None else names.index(one.name)]
    if one.bundle is not None and len(names) == 1:
        remedy = "is that of the only camera; write it as the product's bundle"
        key = tuple(map(str, written.key((*at, "bundle", "path"))))
        raise written.refused(key, str(one.bundle.path), remedy)
    key = tuple(map(str, written.key((*at, "features"))))
    if one.features and not hasattr(camera, "features"):
        raise written.refused(key, dict(one.features), f"{camera.type} has no features")
    for name, value in one.features:
        if name in _OF_CAMERA:
            remedy = "belongs to the camera, as all products are triggered alike; write it there"
            raise written.refused((*key, name), value, remedy)


def _check_features(config: Config, written: Written, camera: AnyCameraSettings) -> None:
    """Refuse a feature that one product sets and another leaves as the one before it had it."""
    of_products = config.features(camera.name)
    own = {name for name, _ in getattr(camera, "features", ())}
    for index, product in enumerate(config.products):
        for other, features in of_products.items():
            missing = {name for name, _ in features} - {
                name for name, _ in of_products[product.name]
            }
            for name in sorted(missing - own):
                remedy = (
                    f"says nothing of {name}, which product {other} sets; write it here too, or "
                    f"below the features of camera {camera.name}"
                )
                raise written.refused(("products", str(index), "name"), product.name, remedy)


def _check_sources(config: Config, written: Written) -> None:
    """Refuse a camera whose parts are announced by a sink, or for products, that there are not."""
    sinks = {sink.name for sink in config.sinks}
    for index, camera in enumerate(config.cameras):
        trigger = camera.trigger
        if isinstance(trigger, WindowSettings) and trigger.names_products and not config.products:
            key = tuple(map(str, written.key(("cameras", index, "trigger"))))
            raise written.refused(key, trigger.type, "names products, and there are none; add them")
        if isinstance(trigger, SinkTriggerSettings) and trigger.sink not in sinks:
            key = tuple(map(str, written.key(("cameras", index, "trigger", "sink"))))
            raise written.refused(key, trigger.sink, "names no sink; write the name of one")


def _check_places(config: Config, written: Written) -> None:
    """Refuse folders of parts that overlap, and what the agent writes below one of them."""
    shown = {
        index: camera.folder
        for index, camera in enumerate(config.cameras)
        if camera.folder is not None
    }
    written_to = dict(_written_to(config))
    places = found_places([*shown.values(), *written_to.values()])
    for index, folder in shown.items():
        name, here = config.cameras[index].name, places[folder]
        for other in range(index):
            if other not in shown:
                continue
            there = places[shown[other]]
            if here.holds(there) or there.holds(here):
                key = tuple(map(str, written.key(("cameras", index, "path"))))
                remedy = f"camera {config.cameras[other].name} shows {shown[other]} as well"
                raise written.refused(key, str(folder), f"{remedy}; each part would be seen twice")
        for at, place in written_to.items():
            if here.holds(places[place]):
                remedy = f"lies below {folder}, whose files are the parts of camera {name}"
                key = tuple(map(str, written.key(at)))
                raise written.refused(key, str(place), f"{remedy}; name a place outside it")


def _written_to(config: Config) -> Iterator[tuple[tuple[str | int, ...], Path]]:
    """The files and folders that the agent writes to, with their keys."""
    yield ("ledger", "path"), config.ledger.path
    if config.evidence.folder is not None:
        yield ("evidence", "folder"), config.evidence.folder
    yield ("check", "folder"), config.check.folder
    for index, camera in enumerate(config.cameras):
        for key, place in camera.written_to.items():
            yield ("cameras", index, key), place
    for index, service in enumerate(config.services):
        for key, place in service.written_to.items():
            yield ("services", index, key), place


def anchored(value: Any, folder: Path) -> Any:
    """`value` with every relative path in it put below `folder`."""
    if isinstance(value, Path):
        return folder / value
    if isinstance(value, tuple):
        return tuple(anchored(each, folder) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value,
            **{f.name: anchored(getattr(value, f.name), folder) for f in dataclasses.fields(value)},
        )
    return value
