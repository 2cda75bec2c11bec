"""Debian's docker-registry on the loopback interface, and keys to sign with."""

import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from agent.fleet.oci import Registry
from agent.fleet.settings import RegistrySettings
from engine.signature import make_key
from tests.ports import free_port

_HOST = "127.0.0.1"


class RealRegistry:
    """A registry that keeps its blobs in `folder`; a context manager.

    `extra` are further lines of its configuration.
    """

    def __init__(self, folder: Path, *, extra: str = "") -> None:
        found = shutil.which("docker-registry")
        if found is None:
            pytest.skip("docker-registry is missing; apt-get install docker-registry")
        self._binary = found
        self._process: subprocess.Popen[bytes] | None = None
        self._port = free_port()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._configuration = folder / "registry.yml"
        self._configuration.write_text(
            f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder}}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: '{_HOST}:{self._port}'}}\n{extra}"
        )

    @property
    def settings(self) -> RegistrySettings:
        return RegistrySettings(address=f"http://{_HOST}:{self._port}/atac")

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def client(self, **options) -> Registry:
        return Registry.of(self.settings, **options)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start, on the same port each time, and wait until it answers."""
        self._process = subprocess.Popen(
            [self._binary, "serve", self._configuration],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection((_HOST, self._port), timeout=1).close()
            except OSError:
                if time.monotonic() > until or self._process.poll() is not None:
                    raise
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def blob(self, sha256: str) -> Path:
        """The file in which the registry keeps a blob."""
        return self.folder / "docker/registry/v2/blobs/sha256" / sha256[:2] / sha256 / "data"


class Keys:
    """A key pair in two PEM files."""

    def __init__(self, folder: Path, name: str = "signing") -> None:
        private, public = make_key("--key")
        self.private, self.public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
        self.private.write_bytes(private)
        self.public.write_bytes(public)
