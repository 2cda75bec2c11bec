"""Who the agent is to its broker, and the broker to it: passwords, certificates, until when."""

import ssl
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from agent.mqtt.settings import BrokerSettings, TlsSettings
from agent.secret import read_secret
from engine.errors import ConfigurationError
from engine.regular_file import open_regular, read_regular

_FORMS: Final = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}
"""How a time is written, by its tag: UTCTime or GeneralizedTime."""
_VERSION: Final = 0xA0
_PEM_MAX_BYTES: Final = 4_000_000
_END: Final = "-----END CERTIFICATE-----"


def check_settings(settings: BrokerSettings) -> None:
    """Raise `ConfigurationError` for settings that contradict each other or name missing files."""
    password(settings)
    if settings.tls is not None:
        tls_context(settings.tls, settings.place)


def password(settings: BrokerSettings) -> str | None:
    """The password, read again for each connection, so that it can change while the agent runs."""
    place = settings.place
    found = read_secret(
        f"{place}.password", file=settings.password_file, variable=settings.password_variable
    )
    if found is not None and settings.user is None:
        raise ConfigurationError(f"{place}.user", None, "is missing beside the password; write it")
    return found


def tls_context(settings: TlsSettings, place: str = "mqtt") -> ssl.SSLContext:
    """What TLS is spoken with; raises `ConfigurationError` for files that cannot be used.

    `place` is where the settings stand in the configuration.
    """
    for key in ("ca_file", "certificate_file", "key_file"):
        _require_regular(f"{place}.tls.{key}", getattr(settings, key))
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        raise ConfigurationError(
            f"{place}.tls.ca_file",
            str(settings.ca_file),
            f"holds no certificates ({plain(error)})",
        ) from None
    if settings.certificate_file is not None:
        try:
            # A key that needs a pass phrase must not stop the agent to ask for it.
            context.load_cert_chain(settings.certificate_file, settings.key_file, lambda: "")
        except OSError as error:
            raise ConfigurationError(
                f"{place}.tls.certificate_file",
                str(settings.certificate_file),
                f"cannot be used with key_file {settings.key_file} ({plain(error)})",
            ) from None
    elif settings.key_file is not None:
        remedy = "is a key without a certificate_file; give both"
        raise ConfigurationError(f"{place}.tls.key_file", str(settings.key_file), remedy)
    return context


def _require_regular(key: str, file: Path | None) -> None:
    """Refuse what OpenSSL would wait for; what is not there it says itself."""
    try:
        if file is not None:
            open_regular(file).close()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigurationError(key, str(file), f"cannot be read ({plain(error)})") from None


def tls_reason(error: ssl.SSLError, settings: BrokerSettings) -> str:
    """Why a broker's TLS is not trusted, and what to do."""
    host, place = settings.host, settings.place
    if not isinstance(error, ssl.SSLCertVerificationError):
        return f"no TLS here, or another kind of it ({error.reason or error})"
    match error.verify_code:
        case 62 | 64:  # the name, the address
            return f"its certificate is not for {host!r}: set {place}.host to a name that it holds"
        case 10:
            return "its certificate has expired"
        case 18 | 19 | 20 | 21:  # self-signed, or an issuer that we do not have
            return f"its certificate is not from {place}.tls.ca_file ({error.verify_message})"
        case _:
            return f"its certificate is not valid ({error.verify_message})"


def expired_hint(settings: BrokerSettings) -> str:
    """Not every broker says why it hangs up on an agent whose own certificate has expired."""
    file = settings.tls and settings.tls.certificate_file
    with suppress(OSError, ValueError):
        if file and valid_until(file) < datetime.now(UTC):
            return f"; its own certificate {file} has expired"
    return ""


def plain(error: Exception) -> str:
    """An error in a few words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def valid_until(path: Path) -> datetime:
    """The end of the first certificate in a PEM file; raises `OSError` or `ValueError`."""
    first = read_regular(path, limit=_PEM_MAX_BYTES).decode("ascii").partition(_END)[0]
    der = ssl.PEM_cert_to_DER_cert(first[first.find("-----BEGIN") :] + _END)
    try:
        # RFC 5280: a certificate begins with what is signed, and that with version, serial,
        # algorithm, issuer and validity; the version may be missing.
        _, certificate, _ = _element(der)
        _, signed, _ = _element(certificate)
        tag, _, rest = _element(signed)
        for _ in range(3 if tag == _VERSION else 2):
            _, _, rest = _element(rest)
        _, validity, _ = _element(rest)
        _, _, rest = _element(validity)
        tag, end, _ = _element(rest)
        form = _FORMS[tag]
    except (IndexError, KeyError):
        raise ValueError(f"{path} holds no certificate") from None
    return datetime.strptime(end.decode("ascii"), form).replace(tzinfo=UTC)


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """The tag and the content of the first DER element, and what follows it."""
    length, start = der[1], 2
    if length >= 0x80:
        start += length - 0x80
        length = int.from_bytes(der[2:start], "big")
    return der[0], der[start : start + length], der[start + length :]
