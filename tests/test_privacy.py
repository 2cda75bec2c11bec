"""No command looks up a host or connects to one that its user has not named."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from PIL import Image

import agent.cli
from agent.cameras.conveyor import ConveyorCamera, ConveyorSettings
from agent.ports import CameraContext
from tests.training_parts import parts, quick  # noqa: F401 - fixtures

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "agent" / "demo_bundle"
COMMANDS = {
    "run": "run --config {folder}/agent.yaml --parts 3",
    "cameras": "cameras",
    "doctor": "doctor --config {folder}/agent.yaml",
    "demo": "demo --parts 3 --report {folder}/demo.html",
    "calibrate": "calibrate --bundle {folder}/bundle --good {folder}/good --max-false-reject 50% "
    "--confidence 60%",
    "train": "train --data {parts} --out {folder}/new --defects 4 --recipe {folder}/recipe.json "
    "--epochs 1 --backbone resnet18 --stage layer2 --backbone-weights none --accept-flips",
    "evaluate": "evaluate --bundle {folder}/bundle --data {parts}",
    "export": "export --bundle {folder}/new --precision int8 --data {parts} --accept-flips",
    "bench": "bench --bundle {folder}/bundle --seconds 1 --rounds 1",
    "build": "build --bundle {folder}/bundle",
    "replay": "replay 1 2 --config {folder}/agent.yaml",
    "trigger": "trigger --config {folder}/agent.yaml",
    "product": "product --config {folder}/agent.yaml",
    "page": "page users --config {folder}/agent.yaml",
    "check": "check --config {folder}/agent.yaml",
    "report": "report --config {folder}/agent.yaml --html {folder}/report.html",
    "compare": "compare --config {folder}/agent.yaml --threshold 1 --report {folder}/compared.html",
    "support": "support --config {folder}/agent.yaml --out {folder}/support.zip",
    "retrain": "retrain --config {folder}/agent.yaml --out {folder}/again",
    "promote": "promote {folder}/bundle --config {folder}/agent.yaml --why test",
    "rollback": "rollback --config {folder}/agent.yaml --why test",
    "sign": "sign --bundle {folder}/bundle --key {folder}/key.pem",
    "verify": "verify --bundle {folder}/bundle --key {folder}/key.pub.pem",
    "fleet": "fleet push {folder}/bundle --registry http://127.0.0.1:9/atac",
}
"""All that there are, in an order in which each finds what it needs."""
CODES = {
    "doctor": {1},
    "build": {0, 1, 2},
    "replay": {0, 2},
    "trigger": {1},
    "product": {1},
    "check": {0, 1},
    "compare": {2},
    "retrain": {2},
    "promote": {1},
    "rollback": {1},
    "fleet": {1},
}
"""There is no broker and no registry here, most machines have no GPU, and only a run makes a
ledger; no evidence is kept, and the only bundle is in force."""

ASKED = {("cameras", "3956")}
"""It asks the networks of this machine, by broadcast, which GigE Vision cameras are there."""


@pytest.fixture(scope="module")
def strace():
    """The tracer, and that it may trace here."""
    tracer = shutil.which("strace")
    if tracer is None or subprocess.run([tracer, "-qq", "true"], check=False).returncode:
        pytest.skip("strace is not installed or may not trace here: apt-get install strace")
    return tracer


@pytest.fixture(scope="module")
def folder(quick, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("private")
    shutil.copy(quick, folder / "recipe.json")
    shutil.copytree(BUNDLE, folder / "bundle")
    (folder / "good").mkdir()
    with ConveyorCamera(ConveyorSettings(defect_rate=0), CameraContext()) as camera:
        for number in range(6):
            Image.fromarray(camera.read().pixels).save(folder / "good" / f"{number}.png")
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pem").write_bytes(private)
    (folder / "key.pub.pem").write_bytes(public)
    text = (ROOT / "agent.yaml").read_text()
    (folder / "agent.yaml").write_text(text.replace("agent/demo_bundle", "bundle"))
    return folder


def test_every_command_is_among_them():
    assert COMMANDS.keys() == set(agent.cli.COMMANDS)


def test_a_program_that_uses_the_engine_is_as_quiet(tmp_path):
    code = (
        "from pathlib import Path\n"
        "from engine.backends.opening import open_backend\n"
        "from engine.bundle import open_bundle\n"
        f"open_backend(open_bundle(Path({str(BUNDLE)!r})))\n"
    )
    hidden = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "HOME": str(tmp_path)},
        cwd=ROOT,
        check=True,
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_speaks_with_nobody_but_the_broker_it_was_given(strace, folder, parts, command):  # noqa: F811
    home = folder / "home" / command
    home.mkdir(parents=True)
    hidden = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    trace = folder / f"{command}.trace"
    agent = [sys.executable, "-c", "from agent.cli import main; main()"]
    done = subprocess.run(
        [
            *(
                strace,
                "-f",
                "--seccomp-bpf",
                "-qq",
                "-e",
                "trace=connect,sendto,sendmsg,sendmmsg",
                "-o",
                trace,
            ),
            *(*agent, *COMMANDS[command].format(folder=folder, parts=parts).split()),
        ],
        env={**environment, "HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in CODES.get(command, {0}), done.stderr
    assert "Traceback" not in done.stderr
    reached = set(
        re.findall(r"AF_INET6?, .*?port=htons\((\d+)\).*?\"([^\"]+)\"", trace.read_text())
    )
    strangers = {
        (port, host)
        for port, host in reached
        if host not in {"127.0.0.1", "::1"} and (command, port) not in ASKED
    }
    assert not strangers, "connected to somebody"
    assert "53" not in {port for port, _ in reached}, "looked up a host"
    kept = {path.relative_to(home).parts[:2] for path in home.rglob("*") if path.is_file()}
    assert kept <= {(".cache", "atac-agent")}, "left something in the user's home"
