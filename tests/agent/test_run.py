"""`agent run` and `agent doctor` as a user starts them: a process, its output, its exit code."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from PIL import Image

from agent.doctor import names
from agent.record.annotations import ThresholdChange
from agent.record.ledger import Ledger
from calibration.record import read_calibration
from engine.bundle import open_bundle
from tests.calibrations import calibrated
from tests.tiny_bundle import tiny_bundle

# The command as installed, and a last look at what it has loaded.
AGENT = """
import sys
from agent.cli import main
try:
    main()
finally:
    assert "torch" not in sys.modules, "the running agent has loaded torch"
"""


@contextmanager
def started(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", AGENT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def agent(*arguments: str | Path) -> tuple[int, str, str]:
    with started(*arguments) as process:
        out, err = process.communicate(timeout=180)
    assert "Traceback" not in err, err
    return process.returncode, out, err


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with a calibrated bundle and an `agent.yaml` whose broker does not exist."""
    calibrated(tiny_bundle(tmp_path / "bundle"), 1000.0)
    configure(tmp_path, "{type: conveyor, parts: 4}")
    return tmp_path


def configure(place: Path, camera: str, *, port: int = 1) -> None:
    (place / "agent.yaml").write_text(
        f"agent: {{id: test}}\nbundle: {{path: bundle}}\ncamera: {camera}\n"
        f"mqtt: {{host: 127.0.0.1, port: {port}}}\n"
    )


def states(place: Path) -> list[str]:
    connection = sqlite3.connect(place / "ledger.sqlite")
    try:
        found = connection.execute("SELECT state FROM triggers ORDER BY sequence")
        return [state for (state,) in found]
    finally:
        connection.close()


def wait_for_commits(place: Path, count: int) -> None:
    """The agent has its ledger to itself; that commits come is seen by its log's growth."""
    log, sizes = place / "ledger.sqlite-wal", set[int]()
    for _ in range(4000):
        if log.exists():
            sizes.add(log.stat().st_size)
        if len(sizes) > count:
            return
        time.sleep(0.025)
    pytest.fail("the ledger does not grow")


def test_it_runs_without_a_broker_to_the_end_of_its_parts(place):
    code, out, err = agent("run", "--config", place / "agent.yaml", "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert summary["counts"] == {
        "OK": 4, "NG": 0, "TIMEOUT": 0, "DROPPED": 0, "NO_FRAME": 0, "ERROR": 0,
    }  # fmt: skip
    assert summary["cameras"] == {"main": summary["counts"]}
    assert states(place) == ["OK"] * 4
    assert summary["latencies"]["end_to_end"]["p50_ms"] > 0


def test_it_tells_people_what_happened(place):
    code, out, _ = agent("run", "--config", place / "agent.yaml", "--parts", "3")
    assert code == 0
    assert out.startswith("3 parts in ")
    assert "3 OK" in out
    assert "3 inspected, 3 of them looked at twice; 0 not inspected" in out
    assert "end_to_end" not in out
    code, out, _ = agent("run", "--config", place / "agent.yaml", "--parts", "3", "--verbose")
    assert "end_to_end" in out


def test_several_cameras_are_counted_each_and_together(place):
    (place / "parts").mkdir()
    for number in range(2):
        picture = np.full((20, 30, 3), 90 + number, np.uint8)
        Image.fromarray(picture).save(place / "parts" / f"{number}.png")
    configure(place, "{type: conveyor}")
    cameras = "[{name: left, type: conveyor, parts: 3}, {name: right, type: folder, path: parts}]"
    text = (place / "agent.yaml").read_text()
    (place / "agent.yaml").write_text(
        text.replace("camera: {type: conveyor}", f"cameras: {cameras}")
    )
    code, out, err = agent("run", "--config", place / "agent.yaml")
    assert code == 0, err
    assert out.startswith("5 parts in ")
    assert "\nleft: 3 OK\nright: 2 OK\n" in out
    assert states(place) == ["OK"] * 5
    code, out, _ = agent("doctor", "--config", place / "agent.yaml")
    assert "left: conveyor gives 640×480 colour frames" in out
    assert "right: folder gives 30×20 colour frames" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_the_part_in_hand_and_loses_no_verdict(place, number, request):
    before = signal.signal(number, lambda *_: None)  # after nohup the agent would ignore it, too
    request.addfinalizer(lambda: signal.signal(number, before))
    configure(place, "{type: conveyor, parts_per_minute: 1200}")
    with started("run", "--config", place / "agent.yaml", "--json") as process:
        wait_for_commits(place, 6)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert len(states(place)) == summary["triggers"] == summary["counts"]["OK"] >= 3


def test_a_stop_that_loses_parts_is_exit_code_1_and_says_which(place, eventually):
    ledger = place / "records" / "ledger.sqlite"
    path = place / "agent.yaml"
    configure(place, "{type: conveyor, parts_per_minute: 1200}")
    text = path.read_text().replace("port: 1}", "port: 1, drain_s: 0}")
    path.write_text(f"{text}ledger: {{path: {ledger}}}\n")
    with started("run", "--config", path, "--parts", "40") as process:
        eventually(lambda: ledger.exists() and ledger.stat().st_size)
        ledger.parent.rename(place / "away")
        ledger.parent.write_text("no folder any more")
        _, err = process.communicate(timeout=180)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert re.search(r"stopped while nothing could be recorded; lost: parts \d+-\d+\n", err)
    assert re.search(r"^agent: \d+ parts could not be recorded$", err, re.MULTILINE)


def test_a_bundle_has_to_be_signed_where_that_is_required(place):
    key = place / "signing.pub.pem"
    text = (place / "agent.yaml").read_text()
    required = text.replace("{path: bundle}", f"{{path: bundle, require_signature: {key}}}")
    (place / "agent.yaml").write_text(required)
    code, _, err = agent("run", "--config", place / "agent.yaml", "--parts", "1")
    assert code == 2
    assert f"bundle.require_signature: '{key}': cannot be read" in err
    public = Ed25519PrivateKey.generate().public_key()
    key.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    code, _, err = agent("run", "--config", place / "agent.yaml", "--parts", "1")
    assert code == 2
    assert "manifest.sig: is missing" in err


def test_systemd_hears_when_it_is_ready_and_when_it_stops(place, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.settimeout(60)
        heard.bind(f"\0atac-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@atac-{os.getpid()}")
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        configure(place, "{type: conveyor, parts_per_minute: 600}")
        with started("run", "--config", place / "agent.yaml") as process:
            assert [heard.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            process.send_signal(signal.SIGTERM)
            while (last := heard.recv(100)) == b"WATCHDOG=1":
                pass
            process.communicate(timeout=120)
    assert last == b"STOPPING=1"
    assert process.returncode == 0


def test_a_replay_of_a_stopped_agent(place):
    for arguments, code, said in [
        (("2", "3"), 2, "there is no ledger yet"),
        (("3", "2"), 2, "LAST: 2: is before FIRST, 3; swap them"),
    ]:
        found, _, err = agent("replay", *arguments, "--config", place / "agent.yaml")
        assert found == code
        assert said in err
    assert agent("run", "--config", place / "agent.yaml", "--parts", "2")[0] == 0
    found, out, _ = agent("replay", "1", "2", "--config", place / "agent.yaml", "--json")
    assert found == 0
    assert json.loads(out) == {"messages": 0, "running": False}


def test_a_camera_that_is_away_at_the_start_is_waited_for(place):
    folder = place / "parts"
    configure(place, f"{{type: folder, path: {folder}}}")
    with started("run", "--config", place / "agent.yaml", "--json") as process:
        assert process.stderr.readline() == "agent: inspects with onnxruntime cpu fp32\n"
        # The broker is away too, and either may be noticed first.
        said = [process.stderr.readline(), process.stderr.readline()]
        away = f"camera main: camera folder {folder} is not there"
        assert f"agent: {away}; trying again until it is back\n" in said
        (place / "new").mkdir()
        picture = Image.fromarray(np.full((20, 30, 3), 90, np.uint8))
        picture.save(place / "new" / "1.png")
        (place / "new").rename(folder)
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(out)["counts"]["OK"] == 1


def refused(place: Path, code: int, *said: str) -> None:
    """The run ends at once with this exit code and one line, and the ledger is not touched."""
    found, out, err = agent("run", "--config", place / "agent.yaml")
    assert (found, out) == (code, "")
    assert err.startswith("agent: ")
    assert err.count("\n") == 1
    for part in said:
        assert part in err
    assert not (place / "ledger.sqlite").exists()


def test_a_wrong_configuration_is_one_line_and_code_2(place):
    configure(place, "{type: conveyor, part: 3}")
    refused(place, 2, "camera.part: 3", "did you mean parts?", "line 3")


def test_a_missing_configuration_is_one_line_and_code_2(place):
    (place / "agent.yaml").unlink()
    refused(place, 2, "there is no such file")


def test_a_bundle_without_a_calibration_is_refused_with_the_remedy(place):
    (place / "bundle" / "calibration.json").unlink()
    refused(place, 2, "there is no calibration", "agent calibrate")


def test_a_calibration_of_another_bundle_is_refused_with_the_remedy(place):
    record = (place / "bundle" / "calibration.json").read_bytes()
    tiny_bundle(place / "bundle", gain=41.0)
    (place / "bundle" / "calibration.json").write_bytes(record)
    refused(place, 2, "belongs to another bundle", "agent calibrate")


@pytest.mark.parametrize("change", ["cut", "flip", "remove", "newer"])
def test_a_bundle_that_is_not_whole_is_refused(place, change):
    network, manifest = place / "bundle" / "network.onnx", place / "bundle" / "manifest.json"
    data = bytearray(network.read_bytes())
    match change:
        case "cut":
            network.write_bytes(data[:-1])
        case "flip":
            data[100] ^= 1
            network.write_bytes(data)
        case "remove":
            network.unlink()
        case "newer":
            text = re.sub(r'"schema_version": \d+', '"schema_version": 99', manifest.read_text())
            manifest.write_text(text)
    refused(place, 2, "manifest.json" if change == "newer" else "network.onnx")


def test_the_doctor_finds_everything_but_the_broker_well(place):
    code, out, err = agent("doctor", "--config", place / "agent.yaml", "--json")
    assert code == 1, err
    levels = {finding["check"]: finding["level"] for finding in json.loads(out)}
    assert levels.pop("names") in {"ok", "warn"}  # warn where the tests run uninstalled
    assert levels.pop("broker") == "fail"
    assert set(levels) == {
        "python", "packages", "configuration", "bundle", "calibration", "backend", "camera",
        "ledger",
    }  # fmt: skip
    assert set(levels.values()) == {"ok"}, out
    assert not (place / "ledger.sqlite").exists()


def test_the_doctor_names_each_fault_and_goes_on(place):
    (place / "bundle" / "calibration.json").unlink()
    configure(place, "{type: folder, path: nowhere}")
    code, out, _ = agent("doctor", "--config", place / "agent.yaml")
    assert code == 1
    lines = {line.split()[1]: line for line in out.splitlines()}
    assert lines["calibration"].startswith("fail")
    assert "agent calibrate" in lines["calibration"]
    assert lines["camera"].startswith("fail")
    assert "nowhere is not there" in lines["camera"]
    assert lines["backend"].startswith("ok")
    assert out.splitlines()[-1] == "not ready: fix the 3 lines marked fail"


def test_the_doctor_shows_the_threshold_that_a_request_has_set(place):
    bundle = open_bundle(place / "bundle")
    change = ThresholdChange(
        calibration_id=read_calibration(bundle).id,
        by="Ada", nonce="nonce-01", old=0.5, new=7.25, is_calibrated=False,
    )  # fmt: skip
    with Ledger(place / "ledger.sqlite", agent_id="line-3") as ledger:
        assert ledger.change_threshold(change)
    _, out, _ = agent("doctor", "--config", place / "agent.yaml", "--json")
    (found,) = [each for each in json.loads(out) if each["check"] == "calibration"]
    assert found["level"] == "warn"
    assert "in force is 7.25, set by a request" in found["message"]


def test_the_doctor_tries_to_write_evidence(place):
    path = place / "agent.yaml"
    text = path.read_text()
    for folder, level in [("new/evidence", "ok"), ("agent.yaml/evidence", "fail")]:
        camera = (
            f"{{type: folder, path: in, after_last: watch, done: move, done_folder: {folder}2}}"
        )
        other = re.sub("camera: {.*}", f"camera: {camera}", text)
        path.write_text(f"{other}\nevidence: {{folder: {folder}}}\n")
        _, out, _ = agent("doctor", "--config", path, "--json")
        found = json.loads(out)
        assert [one["level"] for one in found if one["check"] == "evidence"] == [level]
        assert [one["level"] for one in found if one["check"] == "camera"][1:] == [level]
    assert not list((place / "new/evidence").iterdir())


def test_the_doctor_looks_at_the_plant_s_side(place):
    path = place / "agent.yaml"
    text = path.read_text()
    assert "\nmqtt: {" in text
    path.write_text(
        text.replace(
            "\nmqtt: {", "\nsinks: [{type: sparkplug, group: a, host: 127.0.0.1, port: 1}]\n#"
        )
        + "services: [{type: metrics, address: 0.0.0.0}]\n"
    )
    _, out, _ = agent("doctor", "--config", path, "--json")
    found = {each["check"]: each for each in json.loads(out)}
    assert "Connection refused" in found["sparkplug"]["message"]
    assert found["metrics"]["level"] == "fail"
    assert found["metrics"]["message"].startswith("metrics.token_file: is missing")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path.write_text(f"{text}\nservices: [{{type: metrics, port: {port}}}]\n")
        _, out, _ = agent("doctor", "--config", path, "--json")
        (found,) = [each for each in json.loads(out) if each["check"] == "metrics"]
        assert found["level"] == "warn"
        assert found["message"].endswith("does the agent run already?")


def test_the_doctor_stops_at_a_configuration_that_it_cannot_read(place):
    (place / "agent.yaml").write_text("agent: [")
    code, out, _ = agent("doctor", "--config", place / "agent.yaml")
    assert code == 1
    finding, verdict = out.splitlines()[-2:]
    assert finding.startswith("fail  configuration")
    assert verdict == "not ready: fix the line marked fail"


def test_a_stranger_who_owns_one_of_our_names_is_found():
    ours = {name: ["atac-agent"] for name in ("agent", "calibration", "engine", "train")}
    assert names(ours).level == "ok"
    finding = names(ours | {"engine": ["atac-agent", "steam-engine"]})
    assert finding.level == "fail"
    assert "steam-engine" in finding.message
    assert names({}).level == "warn"
