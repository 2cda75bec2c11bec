"""A GigE Vision camera on a cable of its own: Aravis' fake camera in a network namespace.

Over the loopback interface frames are lost; here none are, unless a test wants it.
"""

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

_CAMERA = "arv-fake-gv-camera-0.8"
_PORT = f":{3956:04X} "
_ARAVIS = "import gi; gi.require_version('Aravis', '0.8'); from gi.repository import Aravis"


def missing() -> str | None:
    """Why there can be no camera on this machine; `None`: there can be one."""
    if shutil.which(_CAMERA) is None or shutil.which("ip") is None:
        return f"{_CAMERA} or ip is missing: apt install aravis-tools iproute2"
    asked = ["/usr/bin/python3", "-I", "-c", _ARAVIS]
    if subprocess.run(asked, check=False, capture_output=True).returncode:
        return "Aravis is missing: apt install gir1.2-aravis-0.8 python3-gi"
    return None


class Cable:
    """Two ends of a virtual cable; the camera's is in a namespace."""

    def __init__(self) -> None:
        number = os.getpid() % 60_000
        self.namespace = f"atac{number}"
        self.ours, self.theirs = f"atac{number}a", f"atac{number}b"
        self.address = f"10.78.{number % 250}.2"
        self.our_address = f"10.78.{number % 250}.1"

    def __enter__(self):
        ours, theirs, there = self.ours, self.theirs, f"-n {self.namespace}"
        try:
            self.ip(f"netns add {self.namespace}")
            self.ip(f"link add {ours} type veth peer name {theirs}")
            self.ip(f"link set {theirs} netns {self.namespace}")
            self.ip(f"addr add {self.our_address}/24 dev {ours}")
            self.ip(f"{there} addr add {self.address}/24 dev {theirs}")
            self.mtu(9000)
            self.ip(f"link set {ours} up")
            self.ip(f"{there} link set {theirs} up")
        except subprocess.CalledProcessError as error:
            self.__exit__()
            pytest.skip(f"no network namespace can be made here: {error.stderr.strip()}")
        return self

    def __exit__(self, *_):
        for what in (f"link delete {self.ours}", f"netns delete {self.namespace}"):
            with suppress(subprocess.CalledProcessError):
                self.ip(what)

    def mtu(self, size):
        """Set the MTU of our end; the camera's has always the largest."""
        self.ip(f"link set {self.ours} mtu {size}")
        self.ip(f"-n {self.namespace} link set {self.theirs} mtu 9000")

    def ip(self, what):
        subprocess.run(["ip", *what.split()], check=True, capture_output=True, text=True)


class GigeCamera:
    """The fake camera; `serial` names it."""

    def __init__(self, cable: Cable) -> None:
        self.cable, self.address = cable, cable.address
        self.serial = f"ATAC{os.getpid()}"
        self.process = None

    def start(self, lost_per_thousand=0.0):
        """Plug it in."""
        command = ["ip", "netns", "exec", self.cable.namespace, _CAMERA, "-i", self.address]
        self.process = subprocess.Popen(
            [*command, "-s", self.serial, "-r", str(lost_per_thousand)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(200):
            with suppress(OSError):
                if _PORT in Path(f"/proc/{self.process.pid}/net/udp").read_text():
                    return self
            time.sleep(0.01)
        raise AssertionError("the fake camera does not start")

    def send(self, number):
        self.process.send_signal(number)

    def stop(self):
        """Pull the plug."""
        if self.process is not None:
            self.send(signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def cable():
    if (why := missing()) is not None:
        pytest.skip(why)
    with Cable() as cable:
        yield cable


@pytest.fixture
def gige(cable):
    camera = GigeCamera(cable)
    try:
        yield camera.start()
    finally:
        camera.stop()
