"""What following a desired state costs an agent and its registry.

    python -m benchmarks.fleet_agent --out benchmarks/results/fleet_agent.json

One agent follows one registry, Debian's docker-registry, on this machine; its line is in memory
and takes every bundle at once.

    look       the agent asks, and nothing is new
    state      there is a new desired state, of the bundle in force: what it costs to learn of it
    bundle     there is a new bundle: from the question to the bundle in its folder, every digest
               computed

`agent_cpu_ms` and `registry_cpu_ms` are processor time, which other work on the machine changes
little. `connections` and bytes are counted by a relay between the two, in a run of their own. The
last block has what a registry would need for fleets that ask every 90 s.
"""

import argparse
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from agent.demo import BUNDLE
from agent.fleet.bundles import push_bundle
from agent.fleet.desired import LINE, Desired, publish, repository_of
from agent.fleet.follower import Follower
from agent.fleet.goal import InForce, Rules, Shadowed
from agent.fleet.kept import Ends
from agent.fleet.oci import Registry
from agent.fleet.settings import RegistrySettings, TrialSettings
from agent.station.status import Promise
from benchmarks.machine import cpu_s, described, write_result
from engine.bundle import MANIFEST, Bundle, open_bundle, replace_file, write_manifest
from engine.signature import SIGNATURE, make_key, sign

_EVERY_S = 90.0
_LINES = (1_000, 10_000)


class MemoryLine:
    """A line that takes every bundle at once."""

    def __init__(self, bundle_id: str) -> None:
        self.bundle_id = bundle_id

    def now(self) -> InForce:
        return InForce(bundle_id=self.bundle_id, ends=Ends(epoch="e", ended=0, ng=0, errors=0))

    def promise(self) -> Promise | None:
        return None

    def calibrate(
        self,
        bundle: Bundle,  # noqa: ARG002
        *,
        is_own: bool,  # noqa: ARG002
        meanwhile: Callable[[], None],  # noqa: ARG002
    ) -> Promise:
        moment = datetime.now(UTC).isoformat()
        return Promise(max_false_reject=0.01, confidence=0.95, is_proved=True, calibrated_at=moment)

    def shadow(
        self,
        bundle: Bundle,  # noqa: ARG002
        *,
        meanwhile: Callable[[], None],  # noqa: ARG002
    ) -> Shadowed | None:
        return None

    def change(
        self,
        kind: Literal["promote", "rollback"],  # noqa: ARG002
        bundle: Bundle | None,
        why: str,  # noqa: ARG002
    ) -> None:
        assert bundle is not None
        self.bundle_id = bundle.id


class Relay:
    """Passes bytes on between an agent and its registry, and counts them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.connections = self.up = self.down = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def taken(self) -> dict[str, int]:
        """What has passed since the last question."""
        time.sleep(0.2)  # what is still on its way
        found = {"connections": self.connections, "bytes_up": self.up, "bytes_down": self.down}
        self.connections = self.up = self.down = 0
        return found

    def _accept(self) -> None:
        while True:
            near, _ = self._listening.accept()
            self.connections += 1
            far = socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._pass, args=(near, far, "up"), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, "down"), daemon=True).start()

    def _pass(self, here: socket.socket, there: socket.socket, name: str) -> None:
        while data := here.recv(1 << 16):
            setattr(self, name, getattr(self, name) + len(data))
            there.sendall(data)
        there.shutdown(socket.SHUT_WR)


@contextmanager
def registry_in(folder: Path) -> Iterator[tuple[int, int]]:
    """A registry that runs; its port and its process id."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configuration = folder / "registry.yml"
    configuration.write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'blobs'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    binary = shutil.which("docker-registry")
    assert binary is not None, "apt-get install docker-registry"
    process = subprocess.Popen([binary, "serve", configuration], stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except OSError:
                time.sleep(0.05)
            else:
                break
        yield port, process.pid
    finally:
        process.kill()
        process.wait()


class Measured:
    """An agent, its registry, and those who sign for it."""

    def __init__(self, folder: Path, source: Path, port: int, pid: int, agent_port: int) -> None:
        self.folder, self.pid, self.serial = folder, pid, 0
        self._key, public = folder / "key.pem", folder / "key.pub.pem"
        for place, pem in zip((self._key, public), make_key("--key"), strict=True):
            place.write_bytes(pem)
        self.first, self.second = (self._signed(source, name) for name in ("first", "second"))
        self._engineer = _client(port)
        for bundle in (self.first, self.second):
            push_bundle(self._engineer, bundle)
        self.follower = Follower(
            _client(agent_port),
            {LINE: MemoryLine(self.first.id)},
            folder / "fleet",
            Rules(
                agent_id="line-1", key=public, option="--key", max_changed=1, trial=TrialSettings()
            ),
            tell=lambda _: None,
            now=lambda: datetime.now(UTC),
            clock=time.monotonic,
            every_s=_EVERY_S,
        )
        self.desire(self.first)
        self.follower.poll()

    def desire(self, bundle: Bundle) -> None:
        self.serial += 1
        state = Desired(
            agent="line-1",
            serial=self.serial,
            bundle=bundle.id,
            expires="2100-01-01T00:00:00+00:00",
        )
        publish(self._engineer, repository_of("line-1"), state, self._key)

    def cost(self, act: Callable[[], object], times: int = 1) -> dict[str, float]:
        """The processor time of one `act`, of the agent and of the registry."""
        registry, agent = cpu_s(self.pid), time.process_time()
        for _ in range(times):
            act()
        agent, registry = time.process_time() - agent, cpu_s(self.pid) - registry
        return {
            "agent_cpu_ms": round(1e3 * agent / times, 3),
            "registry_cpu_ms": round(1e3 * registry / times, 3),
        }

    def _signed(self, source: Path, name: str) -> Bundle:
        shutil.copytree(source, self.folder / name)
        bundle = open_bundle(self.folder / name)
        bundle = write_manifest(bundle.path, replace(bundle.manifest, created_at=name))
        replace_file(bundle.path / SIGNATURE, sign(bundle.read(MANIFEST), self._key))
        return bundle


def measured(source: Path, looks: int) -> dict[str, object]:
    """All figures."""
    found: dict[str, dict[str, float]] = {}
    for is_relayed in (False, True):
        with (
            tempfile.TemporaryDirectory() as name,
            registry_in(Path(name)) as (port, pid),
        ):
            relay = Relay(port) if is_relayed else None
            agent_port = port if relay is None else relay.port
            agent = Measured(Path(name), source, port, pid, agent_port)
            for what, bundle, times in (
                ("look", None, 1 if is_relayed else looks),
                ("state", agent.first, 1),
                ("bundle", agent.second, 1),
            ):
                if bundle is not None:
                    agent.desire(bundle)
                if relay is not None:
                    relay.taken()
                cost = agent.cost(agent.follower.poll, times)
                if relay is None:
                    found[what] = cost
                else:
                    found[what] |= relay.taken()
    size = sum((source / each).stat().st_size for each in open_bundle(source).manifest.files)
    look = found["look"]
    return {
        "bundle_bytes": size,
        "looks": looks,
        **found,
        "every_s": _EVERY_S,
        "fleets": {
            str(lines): {
                "looks_per_s": round(lines / _EVERY_S, 1),
                "registry_cores": round(lines / _EVERY_S * look["registry_cpu_ms"] / 1e3, 3),
                "bytes_per_s": round(lines / _EVERY_S * (look["bytes_up"] + look["bytes_down"])),
            }
            for lines in _LINES
        },
    }


def _client(port: int) -> Registry:
    return Registry(RegistrySettings(address=f"http://127.0.0.1:{port}/atac"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--looks", type=int, default=300)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    write_result(measured(options.bundle, options.looks) | {"machine": described()}, options.out)
