"""Until when a certificate is valid, read from its file without another library."""

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

_FORMS: Final = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}
"""How a time is written, by its tag: UTCTime or GeneralizedTime."""
_VERSION: Final = 0xA0
_END: Final = "-----END CERTIFICATE-----"


def valid_until(path: Path) -> datetime:
    """The end of the first certificate in a PEM file; raises `OSError` or `ValueError`."""
    first = path.read_text(encoding="ascii").partition(_END)[0]
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
