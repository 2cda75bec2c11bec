"""Golden samples: parts known to be good or defective, shown to the real camera, and the protocol.

    checks/device.key, device.pub.pem               made with the first protocol
    checks/2026-11-27_06-02-11_main_passed.json     what was shown, what was said, pictures
    checks/2026-11-27_06-02-11_main_passed.json.sig its signature

A protocol names the hash of the one before, so that none can be taken out unseen. What it says
holds for one bundle, one threshold and one setting of the cameras.
"""

import base64
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from pydantic import TypeAdapter

from agent.part import State
from agent.record.evidence_files import local, safe
from agent.record.rows import software, utc
from engine.bundle import replace_file, sha256
from engine.errors import ConfigurationError
from engine.frame import Pixels
from engine.picture import jpeg, reduced
from engine.regular_file import read_regular
from engine.signature import is_signed, make_key, sign
from engine.spec import spec

if TYPE_CHECKING:
    from agent.settings import Config

_SIDE: Final = 320
_PROTOCOL_MAX_BYTES: Final = 50_000_000
KEY: Final = "device.key"
PUBLIC_KEY: Final = "device.pub.pem"

Truth = Literal["good", "defective"]


@spec
class Sample:
    """One golden sample, what it is, and what was said of it."""

    truth: Truth
    part_id: str
    state: State
    score: float | None
    reason: str = ""
    picture: str = ""
    """JPEG in base64."""

    @property
    def is_right(self) -> bool:
        """Whether a good one was OK, or a defective one NG."""
        return self.state is (State.OK if self.truth == "good" else State.NG)


@spec
class Basis:
    """What a check holds for."""

    agent_id: str
    bundle_id: str
    calibration_id: str
    threshold: float
    cameras: str
    """A hash of the settings of all cameras."""


@spec
class Protocol:
    """One check of one camera: who, when, what came of it; `previous` is the hash of the last."""

    at_ns: int
    at: str
    local_time: str
    camera: str
    who: str
    why: str
    software: str
    backend: str
    basis: Basis
    samples: tuple[Sample, ...]
    passed: bool
    previous: str

    @property
    def statement(self) -> str:
        """What came of it, in one sentence."""
        right = sum(sample.is_right for sample in self.samples)
        wrong = [
            f"{n} ({sample.truth}) was {sample.state}"
            for n, sample in enumerate(self.samples, start=1)
            if not sample.is_right
        ]
        end = "" if not wrong else f"; sample {', sample '.join(wrong)}"
        how = "passed" if self.passed else "FAILED"
        return f"{how}: {right} of {len(self.samples)} golden samples as they should be{end}"


@cache
def _protocol() -> TypeAdapter[Protocol]:
    return TypeAdapter(Protocol)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A protocol, where it lies, and whether its signature is right."""

    path: Path
    protocol: Protocol
    is_signed: bool


def basis_of(config: "Config", bundle_id: str, calibration_id: str, threshold: float) -> Basis:
    """What a check of now holds for."""
    cameras = json.dumps([asdict(camera) for camera in config.cameras], default=str)
    return Basis(
        agent_id=config.agent.id,
        bundle_id=bundle_id,
        calibration_id=calibration_id,
        threshold=threshold,
        cameras=sha256(cameras.encode())[:16],
    )


def expected(good: int, defective: int) -> tuple[Truth, ...]:
    """The order in which samples are shown: the good ones first."""
    one_good: tuple[Truth] = ("good",)
    one_defective: tuple[Truth] = ("defective",)
    return one_good * good + one_defective * defective


def picture_of(pixels: Pixels | None) -> str:
    """A small picture for the protocol."""
    return "" if pixels is None else base64.b64encode(jpeg(reduced(pixels, _SIDE))).decode()


def keep(
    folder: Path,
    samples: Sequence[Sample],
    basis: Basis,
    *,
    camera: str,
    who: str,
    why: str,
    backend: str,
    now_ns: int,
) -> Kept:
    """Sign the protocol of a check and keep it.

    Args:
        folder: Where protocols are kept.
        samples: What was shown and said.
        basis: What it holds for.
        camera: Which one has seen them.
        who: Who has shown them.
        why: What for.
        backend: What has inspected.
        now_ns: UTC.

    Raises:
        ConfigurationError: The folder cannot be written, or nothing can be signed.
    """
    moment = local(now_ns)
    known = [one.path for one in protocols(folder, newest=5)]
    protocol = Protocol(
        at_ns=now_ns,
        at=utc(now_ns),
        local_time=f"{moment:%Y-%m-%d %H:%M:%S %Z}",
        camera=camera,
        who=who,
        why=why,
        software=software(),
        backend=backend,
        basis=basis,
        samples=tuple(samples),
        passed=bool(samples) and all(sample.is_right for sample in samples),
        previous=sha256(known[-1].read_bytes()) if known else "",
    )
    how = "passed" if protocol.passed else "failed"
    path = folder / f"{moment:%Y-%m-%d_%H-%M-%S.%f}_{safe(camera)}_{how}.json"
    data = _protocol().dump_json(protocol, indent=2) + b"\n"
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        if not (folder / KEY).exists():
            private, public = make_key("check.folder")
            descriptor = os.open(folder / KEY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(private)
            replace_file(folder / PUBLIC_KEY, public)
        replace_file(path.with_name(f"{path.name}.sig"), sign(data, folder / KEY))
        replace_file(path, data)
    except OSError as error:
        remedy = f"no protocol can be kept there ({error.strerror})"
        raise ConfigurationError("check.folder", str(folder), remedy) from error
    return Kept(path=path, protocol=protocol, is_signed=True)


def protocols(folder: Path, newest: int | None = None) -> list[Kept]:
    """The newest protocols in a folder, or all, the oldest first; others are left out."""
    found = []
    for path in sorted(folder.glob("*.json"))[-newest if newest else 0 :]:
        with suppress(OSError, ValueError):
            data = read_regular(path, limit=_PROTOCOL_MAX_BYTES)
            protocol = _protocol().validate_json(data)
            found.append(Kept(path=path, protocol=protocol, is_signed=_is_signed(path, data)))
    return sorted(found, key=lambda one: one.protocol.at_ns)


def _is_signed(path: Path, data: bytes) -> bool:
    with suppress(OSError, ConfigurationError):
        signature = read_regular(path.with_name(f"{path.name}.sig"), limit=1000)
        return is_signed(data, signature, path.parent / PUBLIC_KEY)
    return False


def gaps(found: Sequence[Kept]) -> list[str]:
    """What is wrong with a folder of protocols: signatures, and the chain of hashes."""
    wrong = [f"{one.path.name}: its signature is not right" for one in found if not one.is_signed]
    before = ""
    for one in found:
        if one.protocol.previous != before:
            wrong.append(f"{one.path.name}: the protocol before it is missing or was changed")
        before = sha256(one.path.read_bytes())
    return wrong


def missing(
    found: Sequence[Kept], basis: Basis, cameras: Sequence[str], *, since_ns: int
) -> list[str]:
    """The cameras that have not passed since then, with the bundle and the threshold of now."""
    passed: set[str] = set()
    for one in found:
        protocol = one.protocol
        if protocol.basis == basis and protocol.at_ns >= since_ns and one.is_signed:
            (passed.add if protocol.passed else passed.discard)(protocol.camera)
    return [camera for camera in cameras if camera not in passed]
