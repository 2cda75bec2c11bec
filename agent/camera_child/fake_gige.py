"""A GigE Vision camera without hardware, for tests and benchmarks: Aravis' own, on a virtual cable.

The camera is in a network namespace, since over the loopback interface frames are lost. It needs
the packages aravis-tools and iproute2, and the right to make a namespace (root, as a rule).
"""

import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

_CAMERA: Final = "arv-fake-gv-camera-0.8"
_PORT: Final = f":{3956:04X} "
_ARAVIS: Final = "import gi; gi.require_version('Aravis', '0.8'); from gi.repository import Aravis"
_JUMBO: Final = 9000
_START_S: Final = 5.0


def missing() -> str | None:
    """Why there can be no such camera on this machine; `None`: there can be one."""
    if shutil.which(_CAMERA) is None or shutil.which("ip") is None:
        return f"{_CAMERA} or ip is missing: apt install aravis-tools iproute2"
    asked = ["/usr/bin/python3", "-I", "-c", _ARAVIS]
    if subprocess.run(asked, check=False, capture_output=True).returncode:  # noqa: S603 - Python
        return "Aravis is missing: apt install gir1.2-aravis-0.8 python3-gi"
    try:
        with Cable():
            return None
    except OSError as error:
        return f"no network namespace can be made here: {error}"


class Cable:
    """A virtual cable with the camera's end in a namespace of its own; a context manager.

    Entering raises `OSError` where that is not allowed.
    """

    def __init__(self) -> None:
        number = os.getpid() % 60_000
        self.namespace = f"atac{number}"
        self.ours, self.theirs = f"atac{number}a", f"atac{number}b"
        self._network = f"10.78.{number % 250}"
        self.address = f"{self._network}.2"
        """The camera's."""

    def __enter__(self) -> Self:
        there = f"-n {self.namespace}"
        try:
            _ip(f"netns add {self.namespace}")
            _ip(f"link add {self.ours} type veth peer name {self.theirs}")
            _ip(f"link set {self.theirs} netns {self.namespace}")
            _ip(f"addr add {self._network}.1/24 dev {self.ours}")
            _ip(f"{there} addr add {self.address}/24 dev {self.theirs}")
            self.mtu(_JUMBO)
            _ip(f"link set {self.ours} up")
            _ip(f"{there} link set {self.theirs} up")
        except OSError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for what in (f"link delete {self.ours}", f"netns delete {self.namespace}"):
            with suppress(OSError):
                _ip(what)

    def mtu(self, size: int) -> None:
        """Set the MTU of our end; the camera's has always the largest."""
        _ip(f"link set {self.ours} mtu {size}")
        _ip(f"-n {self.namespace} link set {self.theirs} mtu {_JUMBO}")


class FakeGigeCamera:
    """A camera at the end of `cable`, not plugged in yet; `serial` and `address` name it."""

    def __init__(self, cable: Cable) -> None:
        self.cable, self.address = cable, cable.address
        self.serial = f"ATAC{os.getpid()}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, lost_per_thousand: float = 0.0) -> Self:
        """Plug it in; it loses this many of a thousand packets."""
        enter = ["ip", "netns", "exec", self.cable.namespace]
        self._process = subprocess.Popen(  # noqa: S603 - a program of the system
            [*enter, _CAMERA, "-i", self.address, "-s", self.serial, "-r", str(lost_per_thousand)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            with suppress(OSError):
                if _PORT in Path(f"/proc/{self._process.pid}/net/udp").read_text():
                    return self
            time.sleep(0.01)
        raise OSError("the fake camera does not start")

    def stop(self) -> None:
        """Pull the plug."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _ip(what: str) -> None:
    done = subprocess.run(["ip", *what.split()], check=False, capture_output=True, text=True)  # noqa: S603, S607 - a program of the system
    if done.returncode:
        raise OSError(f"ip {what}: {done.stderr.strip()}")
