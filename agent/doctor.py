"""Is this machine ready to run the agent? One finding per question, each with its remedy."""

import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Final, Literal

import cv2

from agent.cameras.folder import FolderSettings
from agent.cameras.one_frame import one_frame
from agent.cameras.settings import AnyCameraSettings, Features
from agent.clock import SystemClock
from agent.listening import listening
from agent.opcua.plc import check_installed
from agent.plc.probe import probe_client, probe_server
from agent.ports import Described
from agent.record.annotations import threshold_in_file
from agent.record.evidence_files import check_folder
from agent.record.schema import check_place, damage
from agent.registry import ROOMS, open_camera, open_trigger
from agent.runtime import bundle_runtime
from agent.services.fleet import FleetSettings
from agent.services.fleet.probe import probe as probe_fleet
from agent.services.metrics import MetricsSettings
from agent.services.metrics.server import check_settings as check_metrics
from agent.services.opcua import OpcuaSettings, uri
from agent.services.shipper import ShipperSettings
from agent.services.shipper.service import check_installed as check_shipper_installed
from agent.settings import Config, load_config
from agent.sinks.modbus import ModbusSettings
from agent.sinks.mqtt.probe import probe
from agent.sinks.mqtt.settings import MqttSettings
from agent.sinks.opcua import OpcuaSettings as PlcByOpcuaSettings
from agent.sinks.sparkplug.probe import probe as probe_node
from agent.sinks.sparkplug.settings import SparkplugSettings
from agent.triggers.opcua import OpcuaSettings as OpcuaTriggerSettings
from agent.triggers.settings import AnyTriggerSettings, SinkTriggerSettings, WindowSettings
from calibration.record import read_calibration
from engine.backends.base import BACKENDS
from engine.backends.opening import open_inspector
from engine.bundle import Bundle, open_bundle
from engine.errors import AtacError, BackendError, ImageError, KindError
from engine.frame import Pixels
from engine.image import visible
from engine.methods import METHODS

DISTRIBUTION: Final = "atac-agent"
OUR_PACKAGES: Final = ("agent", "calibration", "engine", "train")
_NEEDED: Final = (
    "numpy",
    "onnxruntime",
    "cv2",
    "paho",
    "PIL",
    "pydantic",
    "yaml",
    "typer",
    "jinja2",
    "argon2",
    "starlette",
    "uvicorn",
)
_FRAME_S: Final = 5.0
_LITTLE_SPACE: Final = 1_000_000_000
_NO_SPACE: Final = 50_000_000

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The answer to one question, in one line that ends with the remedy if there is need of one."""

    check: str
    level: Level
    message: str


def examine(path: Path, *, is_running: bool = False) -> Iterator[Finding]:
    """Every finding about this machine and the configuration in `path`, as it is made.

    Reads each camera's next frame and does at the broker what the agent will do, where nobody
    listens; changes nothing but that folders are made, and a small object in a bucket. What depends
    on something that failed is left out. While the agent `is_running`, its cameras and what
    inspects are left alone.
    """
    yield _ok("python", f"{sys.version.split()[0]} in {sys.prefix}")
    owners = packages_distributions()
    yield _packages(owners)
    yield names(owners)
    yield from _added()
    try:
        config = load_config(path)
    except AtacError as error:
        yield Finding(check="configuration", level="fail", message=str(error))
        return
    yield _ok("configuration", f"{path} is complete")
    of_products = [
        bundle for one in config.products for bundle in (one.bundle, *config.views(one).values())
    ]
    for bundle in of_products or [config.bundle]:
        yield from _model(replace(config, bundle=bundle), is_running=is_running)
    for camera in () if is_running else config.cameras:
        for product in config.features(camera.name) or [None]:
            features = {} if product is None else {product: config.features(camera.name)[product]}
            found = _checked("camera", partial(_camera, camera, features))
            name = camera.name if product is None else f"{camera.name} for {product}"
            yield replace(found, message=f"{name}: {found.message}")
            if isinstance(camera, FolderSettings) and camera.done != "keep":
                yield _done(camera, is_there=found.level != "fail")
        for key, source in (("trigger", camera.trigger), ("part ids", camera.part_ids)):
            if isinstance(source, WindowSettings) and not isinstance(source, SinkTriggerSettings):
                deadline_s = config.lines[camera.name].deadline_s if key == "trigger" else None
                found = _checked(key, partial(_source, key, source, deadline_s))
                yield replace(found, message=f"{camera.name}: {found.message}")
    if config.product_from is not None:
        yield _checked("product", partial(_product, config.product_from, config))
    yield _checked("ledger", lambda: _ledger(config))
    if config.evidence.folder is not None:
        yield _evidence(config.evidence.folder)
    for sink in config.sinks:
        if isinstance(sink, MqttSettings):
            has_fleet = any(isinstance(one, FleetSettings) for one in config.services)
            look = partial(_broker, sink, config.agent.id, has_fleet=has_fleet)
            yield _checked("broker", look)
        if isinstance(sink, SparkplugSettings):
            yield _checked("sparkplug", partial(_node, sink, config))
        if isinstance(sink, ModbusSettings):
            yield _checked("plc", partial(_plc, sink, is_running=is_running))
        if isinstance(sink, PlcByOpcuaSettings):
            yield _checked("plc", partial(_plc_by_opcua, sink, config))
    for service in config.services:
        if isinstance(service, MetricsSettings):
            yield _checked("metrics", partial(_metrics, service, is_running=is_running))
        if isinstance(service, FleetSettings):
            yield _checked("fleet", partial(_fleet, service, config))
        if isinstance(service, ShipperSettings):
            yield _checked("shipper", partial(_shipper, service, config))
        if isinstance(service, OpcuaSettings):
            yield _checked("opcua", partial(_opcua, service, config, is_running=is_running))


def _checked(check: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except AtacError as error:
        return Finding(check=check, level="fail", message=str(error))


def _ok(check: str, message: str) -> Finding:
    return Finding(check=check, level="ok", message=message)


def _packages(owners: Mapping[str, Sequence[str]]) -> Finding:
    missing = [module for module in _NEEDED if find_spec(module) is None]
    if missing:
        message = (
            f"{', '.join(missing)} missing; install with: pip install . in the folder of its source"
        )
        return Finding(check="packages", level="fail", message=message)
    runtimes = (BACKENDS.find(name).settings.module for name in BACKENDS.names())
    present = dict.fromkeys((*_NEEDED, *runtimes))
    distributions = sorted({name for module in present for name in owners.get(module, ())})
    return _ok("packages", ", ".join(f"{name} {version(name)}" for name in distributions))


def _added() -> Iterator[Finding]:
    """The kinds that other packages add, where there are any."""
    for kinds in (*ROOMS, METHODS, BACKENDS):
        try:
            if added := kinds.added():
                yield _ok("plug-ins", ", ".join(added.values()))
        except KindError as error:
            yield Finding(check="plug-ins", level="fail", message=str(error))


def names(owners: Mapping[str, Sequence[str]]) -> Finding:
    """Our packages have everyday names; another distribution's may overwrite or hide them.

    `owners` is `packages_distributions()`: the distributions that hold each top-level package.
    """
    for package in OUR_PACKAGES:
        strangers = set(owners.get(package, ())) - {DISTRIBUTION}
        if strangers:
            message = (
                f"the package {package} also belongs to {', '.join(sorted(strangers))}; "
                f"install {DISTRIBUTION} in a virtual environment of its own"
            )
            return Finding(check="names", level="fail", message=message)
    homes = {package: _home(package) for package in OUR_PACKAGES}
    if len(set(homes.values())) > 1:
        places = ", ".join(f"{package} in {home}" for package, home in homes.items())
        message = f"our packages come from different places: {places}; start with: agent"
        return Finding(check="names", level="fail", message=message)
    if not all(owners.get(package) for package in OUR_PACKAGES):
        message = "runs from a checkout, not installed; install with: pip install . in that folder"
        return Finding(check="names", level="warn", message=message)
    return _ok("names", f"{', '.join(OUR_PACKAGES)} are ours, in {homes['agent']}")


def _home(package: str) -> str:
    found = find_spec(package)
    return str(Path(found.origin).parents[1]) if found and found.origin else "nowhere"


def _model(config: Config, *, is_running: bool) -> Iterator[Finding]:
    try:
        bundle = open_bundle(config.bundle.path, signed_by=config.bundle.require_signature)
    except AtacError as error:
        yield Finding(check="bundle", level="fail", message=str(error))
        return
    yield _ok("bundle", f"{bundle.path} ({bundle.id[:12]}), every hash is right")
    yield _checked("calibration", lambda: _calibration(config, bundle))
    if not is_running:
        yield _checked("backend", lambda: _backend(config, bundle))


def _calibration(config: Config, bundle: Bundle) -> Finding:
    record = read_calibration(bundle, precision=config.bundle.precision)
    found = record.calibration
    message = (
        f"threshold {found.threshold:.4g}, set with {found.backend} from {found.good} good parts, "
        f"at most {found.max_false_reject:.2%} false rejects with "
        f"{found.confidence:.0%} confidence"
    )
    changed = threshold_in_file(config.ledger.path, record.id)
    if changed is not None:
        message += f"; in force is {changed:.4g}, set by a request"
        return Finding(check="calibration", level="warn", message=message)
    return _ok("calibration", message)


def _backend(config: Config, bundle: Bundle) -> Finding:
    settings = config.bundle
    try:
        runtime = bundle_runtime(bundle, backend=settings.backend, precision=settings.precision)
        opened = open_inspector(bundle, backend=runtime.backend, precision=runtime.precision)
    except BackendError as error:
        if settings.fallback is None:
            raise
        message = f"{error}; {settings.fallback} would run instead, as bundle.fallback allows"
        return Finding(check="backend", level="warn", message=message)
    with opened as inspector:
        started = perf_counter()
        inspector.warm_up()
        milliseconds = (perf_counter() - started) * 1e3
    return _ok("backend", f"{inspector.name}, one run in {milliseconds:.1f} ms")


def _camera(settings: AnyCameraSettings, features: Mapping[str, Features]) -> Finding:
    stop = threading.Event()
    patience = threading.Timer(_FRAME_S, stop.set)
    patience.start()
    try:
        with open_camera(settings, stop, features=features) as camera:
            described = camera.description if isinstance(camera, Described) else ""
            device = f"; {described}" if described else ""
            notes = camera.notes if isinstance(camera, Described) else ()
            frame = one_frame(camera)
            if camera.fault is not None:
                return Finding(check="camera", level="warn", message=camera.fault)
    except ImageError as error:
        return Finding(check="camera", level="warn", message=f"{error}; such parts end as ERROR")
    finally:
        patience.cancel()
    if frame is None:
        where = f"{settings.folder} can be read, but no new image came"
        seen = "no frame came" if settings.folder is None else where
        message = f"{settings.type}: {seen} within {_FRAME_S:.0f} s; is anything in view?{device}"
        return Finding(check="camera", level="warn", message=message)
    message = f"{settings.type} gives {_picture(visible(frame))}{device}"
    if notes:
        return Finding(check="camera", level="warn", message="; ".join((message, *notes)))
    return _ok("camera", message)


def _done(camera: FolderSettings, *, is_there: bool) -> Finding:
    """Whether files can be moved or deleted."""
    for folder in filter(None, (camera.done_folder, camera.path if is_there else None)):
        if (fault := check_folder(folder)) is not None:
            message = f"{camera.name}: {fault}; files that are done with would stay"
            return Finding(check="camera", level="fail", message=message)
    return _ok("camera", f"{camera.name}: files that are done with can be {camera.done}d")


def _picture(pixels: Pixels) -> str:
    """Size, exposure and sharpness of a frame."""
    height, width = pixels.shape[:2]
    kind = "mono" if pixels.ndim == 2 else "colour"
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    white = (pixels == 255).mean()
    black = (pixels == 0).mean()
    sharpness = cv2.Laplacian(grey, cv2.CV_32F).var()
    return (
        f"{width}×{height} {kind} frames; of one {white:.1%} is white, {black:.1%} black, "
        f"sharpness {sharpness:.0f}"
    )


def _source(check: str, settings: WindowSettings, deadline_s: float | None) -> Finding:
    """Whether a source can be reached; what it announces is `--learn-triggers`' business."""
    if isinstance(settings, OpcuaTriggerSettings):
        check_installed("camera.trigger.type")
        from agent.opcua.probe import probe_plc  # noqa: PLC0415 - needs the extra

        nodes = ("count_node", "id_node", "product_node")
        probe_plc(
            settings.server, talk="trigger", **{name: getattr(settings, name) for name in nodes}
        )
    source = open_trigger(settings, threading.Event(), SystemClock(), camera="", sinks={})
    assert source is not None, "only sources have windows"
    with source:
        pass
    window = f"{settings.type} is there; window {settings.min_ms:g} to {settings.max_ms:g} ms"
    if deadline_s is not None and settings.max_ms > deadline_s * 1e3:
        message = (
            f"{window} ends after the deadline of {deadline_s * 1e3:g} ms, so parts without a "
            "frame are decided too late; learn it with: agent doctor --learn-triggers 50"
        )
        return Finding(check=check, level="warn", message=message)
    return _ok(check, window)


def _product(settings: AnyTriggerSettings, config: Config) -> Finding:
    """What the source says the line makes now."""
    if isinstance(settings, WindowSettings):
        _source("product", settings, None)
    stop = threading.Event()
    patience = threading.Timer(_FRAME_S, stop.set)
    patience.start()
    source = open_trigger(settings, stop, SystemClock())
    assert source is not None, "frames say nothing of products"
    try:
        with source:
            told = source.read()
    finally:
        patience.cancel()
    said = None if told is None else told.product
    name = config.numbers.get(said or "", said)
    if name in {product.name for product in config.products}:
        return _ok("product", f"{settings.type} says that the line makes {name}")
    what = "says nothing" if said is None else f"says {said!r}, which is none of the products"
    message = f"{settings.type} {what}; parts would end as ERROR"
    return Finding(check="product", level="warn", message=message)


def _broker(settings: MqttSettings, agent_id: str, *, has_fleet: bool) -> Finding:
    found = probe(settings, agent_id, has_fleet=has_fleet)
    level: Level = "fail" if found.refused else "warn" if found.missing else "ok"
    message = "; ".join((found.answer, *found.refused, *found.missing))
    return Finding(check="broker", level=level, message=message)


def _node(settings: SparkplugSettings, config: Config) -> Finding:
    cameras = [camera.name for camera in config.cameras]
    said, missing = probe_node(settings, config.agent.id, cameras)
    level: Level = "warn" if missing else "ok"
    return Finding(check="sparkplug", level=level, message="; ".join((said, *missing)))


def _plc(sink: ModbusSettings, *, is_running: bool) -> Finding:
    host, port = sink.address
    places = {"agent_at": sink.agent_at, "plc_at": sink.plc_at}
    if sink.host is not None:
        block, is_alive = probe_server(host, port, unit=sink.unit, **places)
        said = f"{host}:{port} has its registers at {sink.plc_at}, and ours at {sink.agent_at}"
        return _heartbeat(said, block.session, is_alive=is_alive)
    said = f"{', '.join(sink.allow)} may connect to {host}:{port}"
    if is_running:
        return _ok("plc", said)
    if (lacks := probe_client(sink.address, allowed=sink.allow, **places)) is not None:
        return Finding(check="plc", level="warn", message=f"{said}; {lacks}")
    return _ok("plc", f"{said}, and one does; its heartbeat changes")


def _plc_by_opcua(sink: PlcByOpcuaSettings, config: Config) -> Finding:
    check_installed("sinks.type")
    from agent.opcua.probe import probe_plc  # noqa: PLC0415 - needs the extra

    nodes = {"agent_nodes": sink.agent_nodes, "plc_nodes": sink.plc_nodes}
    names_products = any(
        isinstance(one, SinkTriggerSettings) and one.sink == sink.name and one.names_products
        for one in (camera.trigger for camera in config.cameras)
    )
    found = probe_plc(sink.server, talk="handshake", names_products=names_products, **nodes)
    security = sink.server.security.replace("_", " ")
    said = f"{sink.server.url} ({security}) has all {found['variables']} variables"
    return _heartbeat(said, found["session"], is_alive=found["is_alive"])


def _fleet(settings: FleetSettings, config: Config) -> Finding:
    said, is_well = probe_fleet(settings, config)
    return Finding(check="fleet", level="ok" if is_well else "warn", message=said)


def _shipper(settings: ShipperSettings, config: Config) -> Finding:
    check_shipper_installed()
    from agent.services.shipper.probe import probe as probe_bucket  # noqa: PLC0415 - the extra

    said, is_well = probe_bucket(settings, config)
    return Finding(check="shipper", level="ok" if is_well else "warn", message=said)


def _heartbeat(said: str, session: int, *, is_alive: bool) -> Finding:
    if is_alive:
        return _ok("plc", f"{said}; its heartbeat changes, session {session}")
    message = f"{said}; its heartbeat does not change: is its program running?"
    return Finding(check="plc", level="warn", message=message)


def _opcua(settings: OpcuaSettings, config: Config, *, is_running: bool) -> Finding:
    check_installed("services.type")
    from agent.opcua.identity import Identity  # noqa: PLC0415 - needs the extra
    from agent.opcua.probe import probe_place  # noqa: PLC0415

    identity = Identity(settings.place(config.ledger.path), uri(config.agent.id))
    try:
        said, missing = probe_place(identity, settings.listen, settings.port, is_running=is_running)
    except OSError as error:
        message = f"{error.strerror}; does the agent run already?"
        return Finding(check="opcua", level="warn", message=message)
    level: Level = "warn" if missing else "ok"
    return Finding(check="opcua", level=level, message=f"{said}; {missing}" if missing else said)


def _metrics(settings: MetricsSettings, *, is_running: bool) -> Finding:
    check_metrics(settings)
    token = "with a token" if settings.token_file or settings.token_variable else "without a token"
    where = f"{settings.address}:{settings.port}, {token}"
    if is_running:
        return _ok("metrics", where)
    try:
        listening(settings.address, settings.port, backlog=1).close()
    except OSError as error:
        message = f"{error.strerror}; does the agent run already?"
        return Finding(check="metrics", level="warn", message=message)
    return _ok("metrics", f"{where}; the port is free")


def _evidence(folder: Path) -> Finding:
    if (fault := check_folder(folder)) is not None:
        message = f"{fault}; no picture would be kept"
        return Finding(check="evidence", level="fail", message=message)
    return _ok("evidence", f"{folder}, {shutil.disk_usage(folder).free / 1e9:.1f} GB free")


def _ledger(config: Config) -> Finding:
    path = config.ledger.path
    check_place(path)
    if (found := damage(path)) is not None:
        message = f"{path}: {found}; agent run moves it aside and keeps what can be read"
        return Finding(check="ledger", level="fail", message=message)
    free = shutil.disk_usage(path.parent).free
    message = f"{path}, {free / 1e9:.1f} GB free"
    if free < _NO_SPACE:
        return Finding(check="ledger", level="fail", message=f"{message}: too little; make room")
    if free < _LITTLE_SPACE:
        return Finding(check="ledger", level="warn", message=f"{message}: make room soon")
    return _ok("ledger", message)
