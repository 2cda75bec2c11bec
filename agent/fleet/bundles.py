"""Bundles in a registry, and those that were pulled: each in a folder that is named by its id.

    atac/bundles:ID        every file that the manifest names, the manifest and its signature
    atac/calibrations:ID   the calibration of one line

Digest, then signature, then manifest, then each file by the digest that the signed manifest names:
what the registry says of a file is not asked for.
"""

import os
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

from agent.fleet.oci import Registry
from engine import signature
from engine.bundle import (
    CALIBRATION,
    FILE_MAX_BYTES,
    MANIFEST,
    MANIFEST_MAX_BYTES,
    Bundle,
    manifest_of,
    open_bundle,
    replace_file,
)
from engine.errors import BundleError, DesiredStateError
from engine.regular_file import file_sha256
from engine.signature import SIGNATURE

BUNDLES: Final = "bundles"
CALIBRATIONS: Final = "calibrations"
_BUNDLE_KIND: Final = "application/vnd.atac.bundle.v1"
_CALIBRATION_KIND: Final = "application/vnd.atac.calibration.v1"
_SIGNATURE_BYTES: Final = 64
_CALIBRATION_MAX_BYTES: Final = 64_000_000


def push_bundle(registry: Registry, bundle: Bundle) -> str:
    """Put a signed bundle into the registry, and give its id; the calibration stays here.

    Raises `BundleError` where it has no signature.
    """
    if not (bundle.path / SIGNATURE).is_file():
        raise BundleError(
            str(bundle.path),
            f"is not signed; sign it with: agent sign --bundle {bundle.path} --key FILE",
        )
    names = (MANIFEST, SIGNATURE, *bundle.manifest.files)
    files: dict[str, Path | bytes] = {name: bundle.path / name for name in names}
    registry.push(BUNDLES, bundle.id, files, kind=_BUNDLE_KIND)
    return bundle.id


def push_calibration(registry: Registry, data: bytes, calibration_id: str) -> None:
    """Put a calibration into the registry, for the line that it was made on."""
    registry.push(CALIBRATIONS, calibration_id, {CALIBRATION: data}, kind=_CALIBRATION_KIND)


def pull_bundle(
    registry: Registry,
    bundle_id: str,
    folder: Path,
    key: Path,
    *,
    option: str,
    meanwhile: Callable[[], None] = lambda: None,
) -> Bundle:
    """The bundle of this id, pulled into `folder` unless it lies there already.

    Args:
        registry: Where it is pulled from.
        bundle_id: The SHA-256 of its manifest.
        folder: Has a folder for each bundle.
        key: The public key, in PEM, that must have signed it.
        option: Where the key was named, for errors.
        meanwhile: Called again and again, as this may take long.

    Raises:
        RegistryError: The registry is away, or gives other bytes.
        BundleError: It is not signed by that key, or cannot be written.
        DesiredStateError: The registry does not have it.
    """
    place = folder / bundle_id
    if place.is_dir():
        with suppress(BundleError):
            return open_bundle(place, signed_by=key, option=option, bundle_id=bundle_id)
    artifact = registry.pull(BUNDLES, bundle_id)
    if artifact is None or SIGNATURE not in artifact.layers:
        raise DesiredStateError(
            f"the registry has no signed bundle {bundle_id[:12]}; push it with: agent fleet push"
        )
    data = registry.blob(BUNDLES, f"sha256:{bundle_id}", limit=MANIFEST_MAX_BYTES)
    signed = registry.blob(BUNDLES, artifact.layers[SIGNATURE], limit=_SIGNATURE_BYTES)
    unfinished = folder / f"{bundle_id}.partial"
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        replace_file(unfinished / SIGNATURE, signed)
        signature.check(data, unfinished, key, option=option)
        manifest = manifest_of(data, unfinished)
        for name, digest in manifest.files.items():
            if not _has(unfinished / name, digest):  # of a pull that was interrupted
                registry.fetch(
                    BUNDLES,
                    f"sha256:{digest}",
                    unfinished / name,
                    limit=FILE_MAX_BYTES,
                    meanwhile=meanwhile,
                )
        replace_file(unfinished / MANIFEST, data)
        if place.exists():
            shutil.rmtree(place)
        unfinished.rename(place)
    except OSError as error:
        raise BundleError(str(place), f"cannot be written ({error.strerror})") from error
    return open_bundle(place, signed_by=key, option=option, bundle_id=bundle_id)


def pull_calibration(registry: Registry, calibration_id: str, bundle: Bundle) -> None:
    """Put the calibration of this id beside `bundle`, in place of what is there.

    Raises `DesiredStateError` where the registry does not have it.
    """
    if registry.pull(CALIBRATIONS, calibration_id) is None:
        raise DesiredStateError(
            f"the registry has no calibration {calibration_id[:12]}; push it with: agent fleet "
            "push BUNDLE --calibration"
        )
    digest = f"sha256:{calibration_id}"
    data = registry.blob(CALIBRATIONS, digest, limit=_CALIBRATION_MAX_BYTES)
    try:
        replace_file(bundle.path / CALIBRATION, data)
    except OSError as error:
        raise BundleError(str(bundle.path), f"cannot be written ({error.strerror})") from error


def forget_others(folder: Path, kept: Collection[str]) -> None:
    """Remove what was pulled, but for the bundles of these ids."""
    names = {*kept, *(f"{one}.partial" for one in kept)}
    with suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name not in names:
                shutil.rmtree(entry.path, ignore_errors=True)


def _has(file: Path, digest: str) -> bool:
    try:
        return file_sha256(file, limit=FILE_MAX_BYTES) == digest
    except OSError:
        return False
