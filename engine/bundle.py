"""The model bundle: a folder that training ends in and running starts from.

    manifest.json          what is here, which method makes scores of it and how, every file's hash
    network.onnx           the fp32 network; network.fp16.onnx, network.int8.onnx beside it
    weights.safetensors    the trained parameters, for further training
    parity.json            how far the precisions agree, in decisions
    cross_fitted.json      scores of images by models made without them, where the recipe has them
    calibration.json       the threshold; written later, bound to the manifest's own hash
    manifest.sig           a signature of the manifest, where somebody has signed it

The manifest's SHA-256 is the bundle's id. Nothing is parsed before its hash is right.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from engine import signature
from engine.errors import BundleError, NoBundleError
from engine.frame import Pixels
from engine.methods import METHODS, AnyMethod
from engine.onnx_file import names_other_files
from engine.regular_file import file_sha256, read_regular
from engine.spec import SchemaError, parse, spec

SCHEMA_VERSION: Final = 2
MANIFEST: Final = "manifest.json"
CALIBRATION: Final = "calibration.json"
WEIGHTS: Final = "weights.safetensors"
PARITY: Final = "parity.json"
MANIFEST_MAX_BYTES: Final = 4_000_000
FILE_MAX_BYTES: Final = 2 << 30
"""More than an ONNX file can have."""

Precision = Literal["fp32", "bf16", "fp16", "int8", "int8_symmetric"]
"""`int8` is for CPUs, `int8_symmetric` for TensorRT; docs/adr/0015. `bf16` is no network of its
own, but the fp32 one as OpenVINO computes it on CPUs that can; docs/adr/0013."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@spec
class TrainingRecord:
    """Where the weights come from: enough to repeat the training.

    `held_out_scores` are the fp32 scores of good images that training never saw; they serve the
    parity gate, not the threshold, which is `agent calibrate`'s to set.
    """

    recipe: str
    backbone: str
    pretrained: str
    seed: int
    epochs: int
    good: int
    defective: int
    split_sha256: Sha256
    training_sha256: tuple[Sha256, ...]
    held_out_scores: tuple[float, ...]
    final_loss: float
    seconds: float
    versions: dict[str, str]


@spec
class Manifest:
    """All that the engine needs to know about a model besides its weights."""

    schema_version: int
    created_at: str
    method: AnyMethod
    networks: dict[Precision, str]
    training: TrainingRecord
    files: dict[str, Sha256]


_MANIFEST: Final = TypeAdapter(Manifest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An opened bundle whose files all had the hashes that its manifest names."""

    path: Path
    manifest: Manifest
    id: str

    def read(self, name: str) -> bytes:
        """The bytes of file `name`, checked against the manifest once more; also the manifest's."""
        digest = self.id if name == MANIFEST else self.manifest.files[name]
        return _read_checked(self.path, name, digest)

    def network(self, precision: Precision) -> bytes:
        """The ONNX model of one precision."""
        try:
            name = self.manifest.networks[precision]
        except KeyError:
            have = ", ".join(self.manifest.networks)
            raise BundleError(
                str(self.path),
                f"has no {precision} network (it has {have}); "
                f"make one with: agent export --bundle {self.path} --precision {precision}",
            ) from None
        model = self.read(name)
        try:
            is_whole = not names_other_files(model)
        except ValueError as error:
            raise BundleError(str(self.path / name), f"is not an ONNX model ({error})") from None
        if is_whole:
            return model
        raise BundleError(
            str(self.path / name),
            "names another file for its weights, which no hash covers; export it in one file",
        )


def open_bundle(
    path: Path,
    *,
    signed_by: Path | None = None,
    option: str = "bundle.require_signature",
    bundle_id: str | None = None,
) -> Bundle:
    """Open the bundle in folder `path`.

    Args:
        path: the bundle's folder.
        signed_by: a public key; what is not signed by it is refused before it is parsed.
        option: where the key was named, for errors.
        bundle_id: the id of the bundle that was opened before; any other one is refused.

    Raises:
        BundleError: the bundle cannot be used; it names the file at fault.
        ConfigurationError: the key cannot be used.
    """
    data = _read(path, MANIFEST, limit=MANIFEST_MAX_BYTES)
    if bundle_id is not None and sha256(data) != bundle_id:
        raise BundleError(
            str(path),
            f"holds another bundle than at the start ({sha256(data)[:12]}, not {bundle_id[:12]}); "
            "put the first one back, or restart the agent to use this one",
        )
    if signed_by is not None:
        signature.check(data, path, signed_by, option=option)
    manifest = manifest_of(data, path)
    for name, digest in manifest.files.items():
        try:
            found = file_sha256(path / name, limit=FILE_MAX_BYTES)
        except OSError as error:
            raise _unreadable(path / name, error) from error
        _check_digest(path / name, found, digest)
    return Bundle(path=path, manifest=manifest, id=sha256(data))


def manifest_of(data: bytes, path: Path) -> Manifest:
    """The manifest in `data`, of the bundle in folder `path`; raises `BundleError`.

    All files that it names lie in that folder itself.
    """
    try:
        manifest = parse(_MANIFEST, data, version=SCHEMA_VERSION, noun="manifest")
    except SchemaError as error:
        raise BundleError(str(path / MANIFEST), _reason(error)) from error
    unlisted = set(manifest.networks.values()) - set(manifest.files)
    if unlisted:
        raise BundleError(str(path / MANIFEST), f"gives no hash for {', '.join(sorted(unlisted))}")
    for name in manifest.files:
        _check_name(path, name)
    return manifest


def _reason(error: SchemaError) -> str:
    if error.kind != "kind" or error.place != "method":
        return str(error)
    name = error.found.get("type") if isinstance(error.found, dict) else None
    if name in (known := METHODS.names()):
        return str(error)
    return (
        f"is of the method {name!r}, which is not installed ({' and '.join(known)} are); update "
        "atac-agent, or install the package that adds the method"
    )


def write_manifest(path: Path, manifest: Manifest) -> Bundle:
    """Write `manifest` into folder `path`, atomically, and open the bundle."""
    replace_file(path / MANIFEST, _MANIFEST.dump_json(manifest, indent=2) + b"\n")
    return open_bundle(path)


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash leaves the old file or the new one, whole."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sha256(data: bytes) -> str:
    """The SHA-256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def pixels_sha256(pixels: Pixels) -> str:
    """A hash of what an image shows: equal for equal pixels, whatever file format held them."""
    return sha256(repr(pixels.shape).encode() + pixels.tobytes())


def _read_checked(folder: Path, name: str, digest: str) -> bytes:
    data = _read(folder, name)
    _check_digest(folder / name, sha256(data), digest)
    return data


def _check_name(folder: Path, name: str) -> None:
    if PurePosixPath(name).name != name or "\\" in name:
        raise BundleError(str(folder / MANIFEST), f"names a file outside the bundle: {name!r}")


def _check_digest(file: Path, found: str, digest: str) -> None:
    if found != digest:
        raise BundleError(
            str(file),
            "does not have the hash that the manifest names: it was changed or damaged; "
            "restore it or train again",
        )


def _read(folder: Path, name: str, *, limit: int = FILE_MAX_BYTES) -> bytes:
    file = folder / name
    try:
        return read_regular(file, limit=limit)
    except OSError as error:
        if name == MANIFEST and isinstance(error, FileNotFoundError | NotADirectoryError):
            raise NoBundleError(str(folder)) from None
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> BundleError:
    return BundleError(str(file), f"cannot be read ({error.strerror})")
