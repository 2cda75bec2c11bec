"""What the agent reads from outside, each as a function of bytes that must never fail otherwise.

What it raises is a crash. `seeds` are good inputs, to start from.
"""

import io
import json
import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import numpy as np
from PIL import Image

from agent.mqtt.link import Heard
from agent.requests import Requests
from agent.services.metrics import MetricsSettings
from agent.services.metrics.server import MetricsServer
from agent.settings import Config, load_config
from agent.sinks.mqtt.messages import Topics
from agent.sinks.mqtt.requests import COMMANDS, MqttRequests, request_json
from agent.sinks.mqtt.settings import MqttSettings
from agent.sinks.sparkplug.payload import booleans
from agent.station.threshold import Threshold
from engine.bundle import open_bundle
from engine.errors import BundleError, ConfigurationError, ImageError
from engine.image import decode_image
from tests.agent.sinks.sparkplug.schema import command
from tests.agent.statuses import Newest, status

ROOT = Path(__file__).parents[2]
RESPONSE = "atac/a/response"
_MAX_PIXELS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Parser:
    """`accepts` says whether the bytes were taken for good; an undocumented error escapes."""

    accepts: Callable[[bytes], bool]
    seeds: tuple[bytes, ...]


def _image(data: bytes) -> bool:
    try:
        pixels = decode_image(data, source="camera", max_pixels=_MAX_PIXELS)
    except ImageError:
        return False
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 2 or pixels.shape[2] == 3
    return True


def _configuration(data: bytes) -> bool:
    _FILE.write_bytes(data)
    try:
        config = load_config(_FILE)
    except ConfigurationError as error:
        said = str(error)
    else:
        assert isinstance(config, Config)
        return True
    assert said.isprintable(), "one line, whatever is written there"
    return False


def _manifest(data: bytes) -> bool:
    (_BUNDLE / "manifest.json").write_bytes(data)
    try:
        open_bundle(_BUNDLE)
    except BundleError:
        return False
    return True


class _AnyLedger:
    """A ledger that knows every part and takes everything."""

    epoch = "0" * 12

    def label(self, *_: object) -> bool:
        return True

    def changed_threshold(self, _calibration_id: str) -> None:
        return None

    def change_threshold(self, _change: object) -> bool:
        return True

    def use_nonce(self, *_: object, **__: object) -> bool:
        return True


def _command(data: bytes) -> bool:
    ledger = _AnyLedger()
    requests = MqttRequests(
        MqttSettings(host="localhost", commands=COMMANDS),
        Topics(agent_id="a"),
        Requests(
            ledger,
            agent_id="a",
            threshold=Threshold(ledger, calibrated=1.0, calibration_id=""),
            paused=threading.Event(),
        ),
        lambda _epoch, first, last: last - first,
        now=lambda: 1_800_000_000.0,
    )
    message = requests.answer(Heard(payload=data, response_topic=RESPONSE))
    assert message is not None
    told = json.loads(message.payload)
    assert (requests.accepted, requests.refused) == ((1, 0) if told["ok"] else (0, 1))
    return bool(told["ok"])


def _sparkplug(data: bytes) -> bool:
    try:
        found = booleans(data)
    except ValueError:
        return False
    return all(isinstance(value, bool) for value in found.values())


def _scrape(data: bytes) -> bool:
    try:
        answer, _ = _METRICS._found(data)
    except ValueError:
        return False
    return answer is HTTPStatus.OK


def _images() -> tuple[bytes, ...]:
    rng = np.random.default_rng(0)
    found = []
    for form, pixels in {
        "png": rng.integers(0, 256, (12, 16, 3)),
        "jpeg": rng.integers(0, 256, (16, 16)),
        "bmp": rng.integers(0, 256, (6, 7, 3)),
        "tiff": rng.integers(0, 256, (9, 5, 3)),
        "webp": rng.integers(0, 256, (8, 8, 3)),
        "ppm": rng.integers(0, 256, (4, 4, 3)),
    }.items():
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, form)
        found.append(file.getvalue())
    return tuple(found)


def _all_keys() -> bytes:
    """`agent.yaml` with every key in force beside one camera and one bundle, without comments."""
    shown = re.sub(
        r"^( *)#(?=[a-z_]+: )(?!camera|product_from)",
        r"\1",
        (ROOT / "agent.yaml").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    return re.sub(r"^ *#.*\n|  +#.*$|^\n", "", shown, flags=re.MULTILINE).encode()


def _commands() -> tuple[bytes, ...]:
    def made(command: str, **arguments: object) -> bytes:
        return request_json(command, "nonce-0001", "2027-01-15T08:01:00Z", **arguments)

    return (
        made("ping"),
        made("threshold"),
        made("pause"),
        made("replay", first=1, last=7, epoch="0" * 12),
        made("label", id="a:000000000000:7", label="good"),
        made("set_threshold", threshold=1.5, by="Ada"),
    )


_FOLDER = Path(tempfile.mkdtemp(prefix="atac-parsers-"))
_FILE = _FOLDER / "agent.yaml"
_BUNDLE = _FOLDER / "bundle"
_BUNDLE.mkdir()

_METRICS = MetricsServer(MetricsSettings(), Newest(status()))

PARSERS = {
    "frame": Parser(accepts=_image, seeds=_images()),
    "configuration": Parser(accepts=_configuration, seeds=(_all_keys(),)),
    "command": Parser(accepts=_command, seeds=_commands()),
    "manifest": Parser(
        accepts=_manifest, seeds=((ROOT / "agent/demo_bundle/manifest.json").read_bytes(),)
    ),
    "sparkplug": Parser(accepts=_sparkplug, seeds=(command(), command(value=False))),
    "scrape": Parser(
        accepts=_scrape,
        seeds=(b"GET /metrics HTTP/1.1\r\nHost: a:9464\r\nAuthorization: Bearer x\r\n\r\n",),
    ),
}
