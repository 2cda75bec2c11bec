"""The certificates of the OPC UA server, in a folder of its own, laid out as is usual.

    own/        our certificate and key, made at the first start
    operators/  certificates of clients that may start and stop inspection
    trusted/    certificates of clients that may read
    rejected/   certificates of clients that were turned away: move one to let it in

A client is known by its own certificate, not by who has signed it.
"""

import datetime as dt
import logging
import os
import socket
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from engine.errors import ConfigurationError

_LOG: Final = logging.getLogger("atac_agent.opcua")
_YEARS: Final = 10
_REJECTED: Final = 20
"""Certificates of strangers that are kept; who floods us fills no disk."""
_MOST_BYTES: Final = 64 * 1024


class Identity:
    """The folder `folder` of the server that calls itself `uri`."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder: Final = folder
        self._uri = uri
        self.certificate_file: Final = folder / "own" / "certificate.der"
        self.key_file: Final = folder / "own" / "key.pem"

    def prepare(self) -> None:
        """Make the folders, and our certificate where there is none."""
        for name in ("own", "operators", "trusted", "rejected"):
            (self.folder / name).mkdir(mode=0o750, parents=True, exist_ok=True)
        if self.certificate_file.exists() and self.key_file.exists():
            return
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        made = _certificate(self._uri, key)
        descriptor = os.open(self.key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(
                key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
            )
        self.certificate_file.write_bytes(made.public_bytes(serialization.Encoding.DER))

    def check(self) -> str:
        """How long our certificate is valid; raises `ConfigurationError` where it cannot be used.

        It belongs to its key, its time has not gone, and it is made out for this address.
        """
        made = read_certificate("opcua.folder", self.certificate_file)
        remedy = f"remove {self.certificate_file.parent} to have another made, which clients trust"
        try:
            data = self.key_file.read_bytes()
            key = serialization.load_pem_private_key(data, password=None)
        except OSError as error:
            raise self._wrong(f"cannot be read ({error.strerror})") from None
        except (TypeError, ValueError):
            raise self._wrong(f"is no key without a pass phrase; {remedy}") from None
        if key.public_key() != made.public_key():
            raise self._wrong(f"is not the key of {self.certificate_file}; {remedy}")
        until = made.not_valid_after_utc.date()
        if not is_valid_now(made):
            since = made.not_valid_before_utc.date()
            raise self._wrong(f"its certificate is valid from {since} to {until}; {remedy}")
        if self._uri not in uris_of(made):
            others = ", ".join(uris_of(made)) or "nobody"
            why = f"its certificate is made out for {others}, and this is {self._uri}"
            raise self._wrong(f"{why}; {remedy}")
        return f"its certificate {fingerprint(made)} is valid until {until}"

    def _wrong(self, remedy: str) -> ConfigurationError:
        return ConfigurationError("opcua.folder", str(self.key_file), remedy)

    def clients(self, name: str) -> list[x509.Certificate]:
        """The certificates in one of the folders."""
        return [x509.load_der_x509_certificate(each) for each in self._known(name)]

    def pem(self) -> bytes:
        """Our certificate in another form."""
        made = x509.load_der_x509_certificate(self.certificate_file.read_bytes())
        return made.public_bytes(serialization.Encoding.PEM)

    def role(self, certificate: bytes) -> str | None:
        """`operator`, `reader`, or nobody: of the client with this certificate, in DER."""
        for name, role in (("operators", "operator"), ("trusted", "reader")):
            if any(certificate == known for known in self._known(name)):
                return role
        return None

    def reject(self, certificate: bytes) -> None:
        """Keep the certificate of a client that was turned away."""
        made = x509.load_der_x509_certificate(certificate)
        name = made.fingerprint(hashes.SHA256()).hex()[:16]
        folder = self.folder / "rejected"
        path = folder / f"{name}.der"
        if not path.exists() and len(list(folder.iterdir())) < _REJECTED:
            path.write_bytes(certificate)
            subject = made.subject.rfc4514_string()[:100]
            _LOG.warning(
                "OPC UA: a client is turned away (%r); to let it in, move %s to %s",
                subject,
                path,
                folder.with_name("trusted"),
            )

    def _known(self, name: str) -> list[bytes]:
        found = []
        for path in sorted((self.folder / name).glob("*")):
            try:
                made = _loaded(path)
            except (OSError, ValueError):
                continue
            found.append(made.public_bytes(serialization.Encoding.DER))
        return found


def read_certificate(key: str, path: Path) -> x509.Certificate:
    """A certificate in DER or PEM; raises `ConfigurationError` that names `key`."""
    try:
        return _loaded(path)
    except OSError as error:
        raise ConfigurationError(key, str(path), f"cannot be read ({error.strerror})") from None
    except ValueError:
        raise ConfigurationError(key, str(path), "is no certificate, in DER or PEM") from None


def fingerprint(certificate: x509.Certificate) -> str:
    """How people name a certificate."""
    return f"SHA-256 {certificate.fingerprint(hashes.SHA256()).hex()[:16]}…"


def uris_of(certificate: x509.Certificate) -> list[str]:
    """The applications that it is made out for; none where it does not say."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return names.value.get_values_for_type(x509.UniformResourceIdentifier)


def _loaded(path: Path) -> x509.Certificate:
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES)
    if data.startswith(b"-----BEGIN"):
        return x509.load_pem_x509_certificate(data)
    return x509.load_der_x509_certificate(data)


def is_valid_now(certificate: x509.Certificate) -> bool:
    """Whether its time has come and not gone."""
    now = dt.datetime.now(dt.UTC)
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _certificate(uri: str, key: rsa.RSAPrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ATAC Agent")])
    now = dt.datetime.now(dt.UTC)
    alternative = [x509.UniformResourceIdentifier(uri), x509.DNSName(socket.gethostname())]
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=True,
        key_encipherment=True,
        data_encipherment=True,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=365 * _YEARS))
        .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=False)
        .add_extension(usage, critical=False)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
