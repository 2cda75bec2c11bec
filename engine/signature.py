"""An Ed25519 signature of a bundle's manifest, and through its hashes of every file it names.

The signature is the 64 bytes of `manifest.sig`, over the manifest as it is, so that `openssl
pkeyutl -verify -rawin` can check it too. `calibration.json` is written later, by whoever owns the
line, and is not covered. Needs the package `cryptography`, which only this module imports, when
it is used.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine.errors import BundleError, ConfigurationError
from engine.extras import install
from engine.regular_file import open_regular

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

SIGNATURE: Final = "manifest.sig"
_KEY_MAX_BYTES: Final = 10_000
_SIGNATURE_BYTES: Final = 64


def sign(manifest: bytes, key: Path) -> bytes:
    """The signature of a manifest by the private key in PEM file `key`."""
    return _private(key).sign(manifest)


def make_key(option: str) -> tuple[bytes, bytes]:
    """A new private key and its public key, in PEM; `option` is named where that cannot be."""
    _require(option, None)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = Ed25519PrivateKey.generate()
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


def is_signed(data: bytes, signature: bytes, key: Path, *, option: str = "--key") -> bool:
    """Whether `signature` is that of `data` by the owner of the public key in PEM file `key`.

    Raises `ConfigurationError`, naming `option`, where the key cannot be used.
    """
    public = _public(key, option)
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def require_public_key(key: Path, option: str) -> None:
    """Raise `ConfigurationError`, naming `option`, unless PEM file `key` has a public key."""
    _public(key, option)


def check(manifest: bytes, folder: Path, key: Path, *, option: str) -> None:
    """Check that `folder` holds a signature of `manifest`.

    Args:
        manifest: The manifest as it was read.
        folder: The bundle's folder.
        key: The file of the public key, in PEM.
        option: Where the key was named, for errors.

    Raises:
        BundleError: There is no such signature.
        ConfigurationError: The key cannot be used.
    """
    public = _public(key, option)
    from cryptography.exceptions import InvalidSignature

    file = folder / SIGNATURE
    try:
        with open_regular(file) as opened:
            signature = opened.read(_SIGNATURE_BYTES + 1)
    except FileNotFoundError:
        raise BundleError(
            str(file), f"is missing; sign it with: agent sign --bundle {folder} --key FILE"
        ) from None
    except OSError as error:
        raise BundleError(str(file), f"cannot be read ({error.strerror})") from None
    try:
        public.verify(signature, manifest)
    except InvalidSignature:
        raise BundleError(
            str(file),
            f"is not a signature of this manifest by the key {key}: one of the three was changed, "
            "or another key has signed",
        ) from None


def _private(key: Path) -> "Ed25519PrivateKey":
    option = "--key"
    pem = _pem(key, option)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        found = load_pem_private_key(pem, password=None)
    except TypeError:
        remedy = "is encrypted; give one without a pass phrase, on a machine that is safe"
        raise ConfigurationError(option, str(key), remedy) from None
    except ValueError:
        found = None
    if not isinstance(found, Ed25519PrivateKey):
        remedy = "holds no Ed25519 private key; openssl genpkey -algorithm ed25519 makes one"
        raise ConfigurationError(option, str(key), remedy)
    return found


def _public(key: Path, option: str) -> "Ed25519PublicKey":
    pem = _pem(key, option)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        found = load_pem_public_key(pem)
    except ValueError:
        found = None
    if not isinstance(found, Ed25519PublicKey):
        remedy = "holds no Ed25519 public key; openssl pkey -pubout makes one from the private key"
        raise ConfigurationError(option, str(key), remedy)
    return found


def _pem(key: Path, option: str) -> bytes:
    """The content of a key file, once it is certain that something can be done with it."""
    _require(option, str(key))
    try:
        with open_regular(key) as file:
            return file.read(_KEY_MAX_BYTES)
    except OSError as error:
        raise ConfigurationError(option, str(key), f"cannot be read ({error.strerror})") from None


def _require(option: str, value: str | None) -> None:
    try:
        import cryptography  # noqa: F401 - the sentence below is all that is wanted of it
    except ImportError:
        remedy = f"needs the package cryptography; {install('sign')}"
        raise ConfigurationError(option, value, remedy) from None
