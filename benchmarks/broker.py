"""A real mosquitto for benchmarks."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    """A port of the loopback interface that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int, timeout_s: float) -> None:
    """Wait until somebody listens there."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"nobody listens at port {port}")


@contextmanager
def mosquitto(folder: Path, extra: str = "") -> Iterator[int]:
    """A real broker on a free port of the loopback interface; gives the port."""
    port = free_port()
    settings = folder / "mosquitto.conf"
    text = f"listener {port} 127.0.0.1\nallow_anonymous true\n{extra}"
    settings.write_text(text, encoding="utf-8")
    binary = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin") or "mosquitto"
    with subprocess.Popen([binary, "-c", settings], stderr=subprocess.DEVNULL) as process:
        try:
            listening(port, 5.0)
            yield port
        finally:
            process.terminate()
