"""Settings for all tests, and real brokers for those that need one."""

import datetime as dt
import ipaddress
import logging
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import settings

from agent.mqtt.link import Subscriber
from agent.sinks.mqtt.settings import MqttSettings
from tests.ports import free_port

# The same examples everywhere, and no test fails because a machine was busy.
settings.register_profile("atac", deadline=None, derandomize=True, database=None)
settings.load_profile("atac")

_HOST = "127.0.0.1"


class Mosquitto:
    """A real mosquitto on a free port of the loopback interface; a context manager.

    `users` maps names to passwords, `acl` is the text of an access file, `tls` a certificate for
    the server, `extra` further lines of configuration.
    """

    def __init__(self, binary, folder, *, users=None, acl=None, tls=None, extra=""):
        self.host = _HOST
        self.port = free_port()
        self._binary = binary
        self._process = None
        lines = [f"listener {self.port} {_HOST}", "user root", "persistence false", extra]
        lines.append(f"allow_anonymous {'false' if users else 'true'}")
        if users:
            passwords = folder / "passwords"
            passwords.write_text("".join(f"{user}:{word}\n" for user, word in users.items()))
            subprocess.run([_program("mosquitto_passwd"), "-U", passwords], check=True)
            lines.append(f"password_file {passwords}")
        if acl is not None:
            self._acl = folder / "acl"
            self.allow(acl)
            lines.append(f"acl_file {self._acl}")
        if tls is not None:
            lines += [
                f"cafile {tls.ca_file}",
                f"certfile {tls.certificate_file}",
                f"keyfile {tls.key_file}",
            ]
        self._configuration = folder / f"mosquitto-{self.port}.conf"
        self._configuration.write_text("\n".join([*lines, ""]))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_error):
        self.kill()

    @property
    def settings(self) -> MqttSettings:
        return MqttSettings(host=self.host, port=self.port)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start, on the same port each time, and wait until it answers."""
        self._process = subprocess.Popen(
            [self._binary, "-c", self._configuration],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection((self.host, self.port), timeout=1).close()
            except OSError:
                if time.monotonic() > until or self._process.poll() is not None:
                    raise
                time.sleep(0.01)
            else:
                return

    def allow(self, acl: str) -> None:
        """Replace the access rules; a running broker reads them at once."""
        self._acl.write_text(acl)
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def pause(self) -> None:
        """Stop answering, without closing a connection."""
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """Kill it at once; all that it held in memory is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A certificate and its key as PEM files, and the authority that signed it."""

    ca_file: Path
    certificate_file: Path
    key_file: Path


@pytest.fixture(scope="session", autouse=True)
def _cache_of_our_own(tmp_path_factory) -> Iterator[None]:
    """Compiled networks and plans of tests stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """`agent bench` and others are the last of their process and set the level of its logs."""
    logger = logging.getLogger("atac_agent")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def mosquitto_binary() -> str:
    return _program("mosquitto")


@pytest.fixture
def start_broker(mosquitto_binary, tmp_path) -> Iterator[Callable[..., Mosquitto]]:
    """Start a mosquitto with the options of `Mosquitto`; all end with the test."""
    with ExitStack() as stack:

        def start(**options) -> Mosquitto:
            folder = tmp_path / f"broker-{len(list(tmp_path.glob('broker-*')))}"
            folder.mkdir()
            return stack.enter_context(Mosquitto(mosquitto_binary, folder, **options))

        yield start


@pytest.fixture(scope="session")
def kernels_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="session")
def kernels(kernels_folder):
    """The CUDA kernels as C++, built once for all tests."""
    from tests.engine.gpu.kernels import Kernels

    return Kernels(kernels_folder)


@pytest.fixture
def broker(start_broker) -> Mosquitto:
    """A plain mosquitto: no password, no TLS."""
    return start_broker()


class Heard:
    """What a subscriber has heard: `(topic, payload)` in order of arrival; a context manager."""

    def __init__(self, broker_settings, topic_filter="#"):
        self.messages = []
        self._subscriber = Subscriber(
            broker_settings, topic_filter, lambda *message: self.messages.append(message)
        )

    def __enter__(self):
        self._subscriber.__enter__()
        return self

    def __exit__(self, *error):
        self._subscriber.__exit__(*error)

    def on(self, end: str) -> list[bytes]:
        """The payloads on topics that end so."""
        return [payload for topic, payload in self.messages if topic.endswith(end)]


@pytest.fixture
def hear():
    """`hear(settings, topic_filter)` listens until the test ends; gives a `Heard`."""
    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(Heard(*arguments))


@pytest.fixture
def eventually():
    """Wait until a condition holds; fails the test when it does not within a minute."""

    def wait(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < until, "it did not happen in time"
            time.sleep(0.01)

    return wait


@pytest.fixture
def certify(tmp_path) -> Callable[..., Certificate]:
    """`certify("localhost")` makes a certificate for a name or address, from one authority."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("test authority", authority_key, None, authority_key, is_ca=True)
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(authority.public_bytes(serialization.Encoding.PEM))

    def make(name: str, *, days: int = 1) -> Certificate:
        key = ec.generate_private_key(ec.SECP256R1())
        made = _certificate(name, key, authority, authority_key, days=days)
        certificate_file = tmp_path / f"{name}.pem"
        certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        key_file = tmp_path / f"{name}.key"
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return Certificate(ca_file=ca_file, certificate_file=certificate_file, key_file=key_file)

    return make


def _certificate(name, key, issuer, issuer_key, *, is_ca=False, days=1):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    end = now + dt.timedelta(days=days)
    try:
        alternative = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        alternative = x509.DNSName(name.replace(" ", "-"))
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - dt.timedelta(days=1))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())
    )


def _program(name: str) -> str:
    """A program of the mosquitto package; Debian keeps the broker where users do not look."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"needs {name}: apt-get install mosquitto")
    return found
