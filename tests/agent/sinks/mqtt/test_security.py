import datetime as dt
import os
import ssl
from contextlib import suppress
from functools import partial

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from agent.mqtt.security import password, tls_context, valid_until
from agent.mqtt.settings import TlsSettings
from agent.sinks.mqtt.settings import MqttSettings
from engine.errors import ConfigurationError


@pytest.mark.parametrize("days", [1, -1, 400, 36_500])  # the last is written with four digits
def test_the_end_is_what_the_certificate_says(certify, days):
    certificate = certify("line1", days=days).certificate_file
    truth = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    assert valid_until(certificate) == truth


def test_the_first_of_a_chain_counts(certify, tmp_path):
    first, second = (certify(name, days=days) for name, days in [("a", 1), ("b", 9)])
    chain = tmp_path / "chain.pem"
    text = "\n".join(one.certificate_file.read_text() for one in (first, second))
    chain.write_text(f"subject=a\n{text}")
    assert valid_until(chain) == valid_until(first.certificate_file)
    assert valid_until(chain) < dt.datetime.now(dt.UTC) + dt.timedelta(days=2)


@given(st.binary(max_size=200))
def test_anything_else_is_an_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("rubbish") / "file.pem"
    path.write_bytes(content)
    with pytest.raises(ValueError):
        valid_until(path)


def test_a_damaged_certificate_is_an_error_or_has_an_end(certify, tmp_path):
    der = ssl.PEM_cert_to_DER_cert(certify("line1").certificate_file.read_text())
    damaged = tmp_path / "damaged.pem"
    ends = set()
    for position in range(200):
        for value in (0, ord("1"), 0x80):
            changed = der[:position] + bytes([value]) + der[position + 1 :]
            damaged.write_text(ssl.DER_cert_to_PEM_cert(changed))
            with suppress(ValueError):
                ends.add(valid_until(damaged))
    assert len(ends) > 1


@pytest.mark.parametrize(
    ("mode", "is_refused"),
    [(0o600, False), (0o640, False), (0o644, False), (0o660, True), (0o602, True)],
)
def test_a_password_file_that_others_may_write_is_refused(tmp_path, mode, is_refused):
    file = tmp_path / "password"
    file.write_text("secret\n")
    file.chmod(mode)
    settings = MqttSettings(host="localhost", user="line1", password_file=file)
    if is_refused:
        with pytest.raises(ConfigurationError, match=r"can be written by others .* chmod 600"):
            password(settings)
    else:
        assert password(settings) == "secret"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("geheim".encode("utf-16"), "is not text in UTF-8"),
        ("geheim".encode("utf-16-le"), "cannot be printed"),
        ("gehé".encode("latin-1"), "is not text in UTF-8"),
        (b"geheim\0", "cannot be printed"),
        (b"geheim\n\nsecond line\n", "has several lines"),
        (b"\n", "is empty"),
        (b"x" * 70_000, "is larger than"),
    ],
)
def test_a_password_that_nobody_can_have_meant_is_refused_and_not_shown(tmp_path, written, said):
    file = tmp_path / "password"
    file.write_bytes(written)
    file.chmod(0o600)
    settings = MqttSettings(host="localhost", user="line1", password_file=file)
    with pytest.raises(ConfigurationError, match=said) as error:
        password(settings)
    assert "geh" not in str(error.value)
    file.write_bytes("\ufeffgéh eim\r\n".encode())
    assert password(settings) == "géh eim"


@pytest.mark.parametrize("key", ["password_file", "ca_file", "certificate_file"])
def test_a_secret_that_is_no_file_is_not_waited_for(tmp_path, key):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    settings = MqttSettings(host="localhost", user="line1", password_file=pipe)
    read = partial(password, settings)
    if key != "password_file":
        read = partial(tls_context, TlsSettings(**{key: pipe}))
    with pytest.raises(ConfigurationError, match="it is not a regular file"):
        read()
