"""`agent run` on a GPU, over a real mosquitto, while its child is killed and its GPU taken away.

    python3 -m benchmarks.gpu.agent_run --out benchmarks/results/gpu-agent.json
    python3 -m benchmarks.gpu.agent_run --dry      # on the CPU, small frames, kills alone

Frames of 5 MP come from a folder, again and again. A subscriber counts what it hears. Between the
faults the agent runs undisturbed for `--seconds` in all:

    child     kill -9 of the child
    context   the GPU's primary context is reset under the child
    memory    another process takes all memory that is left, then kill -9 of the child
"""

import argparse
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import cv2
import paho.mqtt.client as paho

from agent.synthetic.flange import part
from benchmarks.machine import described, write_result

_FRAMES: Final = 12
_SIZE, _DRY_SIZE = (2592, 1944), (640, 480)
_SETTLING_S: Final = 6.0
_START_S: Final = 60.0
_PORT: Final = 18883
_AGENT: Final = [sys.executable, "-c", "from agent.cli import main; main()"]
_LOSES_ITS_CONTEXT: Final = """
import sys
if "agent.inference.worker" in getattr(sys, "orig_argv", []):
    import ctypes, os, threading, time
    def lose():
        while not os.path.exists({order!r}):
            time.sleep(0.05)
        os.unlink({order!r})
        ctypes.CDLL("libcuda.so.1").cuDevicePrimaryCtxReset_v2(0)
    threading.Thread(target=lose, daemon=True).start()
"""
"""A `sitecustomize.py` for the child."""


class Run:
    """The agent that runs, and what was heard of it so far."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.process = process
        self.topics: Counter[str] = Counter()
        self.states: Counter[str] = Counter()
        self.steps: list[dict[str, Any]] = []
        self._begun = time.monotonic()

    def hear(self, topic: str, payload: bytes) -> None:
        kind = topic.rpartition("/")[2]
        self.topics[kind] += 1
        if kind == "verdict":
            self.states[json.loads(payload)["state"]] += 1

    def child(self) -> int | None:
        """The child that inspects; `None` while there is none."""
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                is_ours = f"PPid:\t{self.process.pid}\n" in status.read_text()
                if (
                    is_ours
                    and b"agent.inference.worker" in status.with_name("cmdline").read_bytes()
                ):
                    return int(status.parent.name)
            except OSError:
                continue
        return None

    def note(self, what: str, **more: object) -> None:
        step = {
            "s": round(time.monotonic() - self._begun, 1),
            "what": what,
            **more,
            "child": self.child(),
            "verdicts": dict(self.states),
        }
        self.steps.append(step)
        print(json.dumps(step), file=sys.stderr, flush=True)

    def kill_child(self) -> None:
        if pid := self.child():
            os.kill(pid, signal.SIGKILL)
        time.sleep(_SETTLING_S)
        self.note("kill -9 of the child", killed=pid)

    def lose_context(self) -> None:
        before = self.child()
        (self.folder / "lose").touch()
        time.sleep(_SETTLING_S)
        self.note("context reset", before=before)

    def take_memory(self) -> None:
        with all_memory() as pieces:
            if pid := self.child():
                os.kill(pid, signal.SIGKILL)
            time.sleep(_SETTLING_S)
            self.note("no memory left, and kill -9 of the child", killed=pid, pieces=pieces)
        time.sleep(_SETTLING_S)
        self.note("memory given back")


@contextmanager
def all_memory() -> Iterator[int]:
    """Take all memory of the GPU that is left; gives the number of pieces."""
    cuda, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
    cuda.cuInit(0)
    cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
    cuda.cuCtxSetCurrent(context)
    held, size = [], 8 << 30
    while size >= 1 << 20:
        address = ctypes.c_uint64()
        if cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size)):
            size //= 2
        else:
            held.append(address)
    try:
        yield len(held)
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(0)  # with all that was allocated in it


def draw(folder: Path, size: tuple[int, int]) -> None:
    folder.mkdir()
    for number in range(_FRAMES):
        grey = cv2.cvtColor(part(0, number, 0.3).pixels, cv2.COLOR_RGB2GRAY)
        cv2.imwrite(str(folder / f"{number:02}.bmp"), cv2.resize(grey, size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("agent/demo_bundle"))
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--mosquitto", default=shutil.which("mosquitto") or "/usr/sbin/mosquitto")
    parser.add_argument("--seconds", type=float, default=600, help="undisturbed, in all")
    parser.add_argument("--dry", action="store_true", help="on the CPU, in half a minute")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.dry:
        options.backend, options.seconds = "onnxruntime", 6
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        draw(folder / "belt", _DRY_SIZE if options.dry else _SIZE)
        shutil.copytree(options.bundle, folder / "bundle")
        (folder / "agent.yaml").write_text(
            "agent: {id: gpu}\n"
            f"bundle: {{path: bundle, backend: {options.backend}}}\n"
            "camera: {type: folder, path: belt, after_last: repeat, "
            f"parts_per_minute: {300 if options.dry else 1800}}}\n"
            "line: {deadline_ms: 500}\n"
            f"mqtt: {{host: 127.0.0.1, port: {_PORT}, every_part: true}}\n"
        )
        site = _LOSES_ITS_CONTEXT.format(order=str(folder / "lose"))
        (folder / "sitecustomize.py").write_text(site)
        broker = subprocess.Popen([options.mosquitto, "-p", str(_PORT)], stderr=subprocess.DEVNULL)
        stack.callback(broker.terminate)
        time.sleep(1)
        search = os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", os.curdir)))
        process = subprocess.Popen(
            [*_AGENT, "run", "--json", "--config", str(folder / "agent.yaml")],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": search},
        )
        stack.callback(process.kill)
        run = Run(folder, process)
        subscriber = paho.Client(paho.CallbackAPIVersion.VERSION2)
        subscriber.on_message = lambda _client, _data, got: run.hear(got.topic, got.payload)
        subscriber.on_connect = lambda client, *_: client.subscribe("#", 1)
        subscriber.connect("127.0.0.1", _PORT)
        subscriber.loop_start()
        faults = [run.kill_child, run.kill_child]
        faults += [] if options.dry else [run.lose_context, run.take_memory]
        until = time.monotonic() + _START_S
        while not run.states and time.monotonic() < until:
            time.sleep(0.1)
        for fault in faults:
            time.sleep(options.seconds / len(faults))
            run.note("undisturbed")
            fault()
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=60)
        time.sleep(1)
        results = {
            "machine": described(),
            "command": " ".join(("python3 -m benchmarks.gpu.agent_run", *sys.argv[1:])),
            "steps": run.steps,
            "heard": dict(run.topics),
            "summary": json.loads(printed),
        }
    write_result(results, options.out)


if __name__ == "__main__":
    main()
