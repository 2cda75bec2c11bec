"""Which backend runs is the configuration's choice; nothing falls back by itself."""

import json
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from agent import cli
from agent.settings import load_config
from engine.errors import ConfigurationError
from engine.gpu import driver
from tests.engine.gpu.gpu_machine import gpu_machine
from tests.engine.gpu.scripted_gpu import GPU
from tests.tiny_bundle import good_part, tiny_bundle

CONFIGURATION = """\
agent: {{id: line-3}}
bundle: {{path: bundle, backend: tensorrt{fallback}}}
camera: {{type: folder, path: parts}}
mqtt: {{host: 127.0.0.1, port: 1}}
"""
FALLBACK = ", fallback: onnxruntime"
needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="needs OpenVINO: pip install '.[cpu]'"
)


@pytest.fixture
def agent(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["agent", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out, printed.err

    return call


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A bundle, 62 good parts, and a cache of our own; no driver."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(driver, "_LIBRARY", "libcuda-that-is-not-there.so.1")
    tiny_bundle(tmp_path / "bundle")
    (tmp_path / "parts").mkdir()
    for seed in range(62):
        Image.fromarray(good_part(seed)).save(tmp_path / "parts" / f"{seed:03}.png")
    return tmp_path


def configured(place, fallback=""):
    path = place / "agent.yaml"
    path.write_text(CONFIGURATION.format(fallback=fallback))
    return path


def left_to_auto(place, extra=""):
    path = configured(place)
    path.write_text(path.read_text().replace(", backend: tensorrt", extra))
    return path


def calibrated(agent, place, config):
    return agent(
        "calibrate", "--config", config, "--frames", 62, "--max-false-reject", "5%", "--json"
    )


def test_a_backend_is_chosen_by_name(place):
    settings = load_config(configured(place, FALLBACK)).bundle
    assert (settings.backend, settings.fallback) == ("tensorrt", "onnxruntime")
    assert load_config(configured(place)).bundle.fallback is None
    with pytest.raises(ConfigurationError, match=r"bundle\.fallback: 'openvino'"):
        load_config(configured(place, ", fallback: openvino"))


@needs_openvino
def test_calibrate_chooses_records_it_and_run_follows(agent, place, monkeypatch):
    config = left_to_auto(place)
    made_with = json.loads(calibrated(agent, place, config)[1])["backend"]
    assert made_with == "openvino cpu fp32"
    code, out, error = agent("run", "--config", config, "--parts", 3, "--json")
    assert (code, error) == (0, f"agent: inspects with {made_with}\n")
    assert json.loads(out)["backend"] == made_with
    assert f"inspected by {made_with}" in agent("run", "--config", config, "--parts", 1)[1]

    # On a machine without it the threshold is not used with something else, unless it is allowed.
    monkeypatch.setitem(sys.modules, "openvino", None)
    for command in (("run", "--config", config), ("bench", "--bundle", place / "bundle")):
        code, out, error = agent(*command)
        assert (code, out, error.count("\n")) == (1, "", 1)
        assert "was set with openvino cpu fp32, and OpenVINO is not installed here" in error
        assert (
            "pip install '.[cpu]' in the folder of its source, or calibrate again: agent calibrate"
            in error
        )
    _, out, _ = agent("doctor", "--config", config, "--json")
    found = {each["check"]: each for each in json.loads(out)}
    assert "set with openvino cpu fp32" in found["calibration"]["message"]
    assert (found["backend"]["level"], "not installed" in found["backend"]["message"]) == (
        "fail",
        True,
    )
    _, out, _ = agent("doctor", "--config", left_to_auto(place, FALLBACK), "--json")
    (finding,) = (each for each in json.loads(out) if each["check"] == "backend")
    assert (finding["level"], "would run instead" in finding["message"]) == ("warn", True)

    # To calibrate again is a way out: it asks no earlier threshold.
    assert json.loads(calibrated(agent, place, config)[1])["backend"] == "onnxruntime cpu fp32"
    _, out, _ = agent("run", "--config", config, "--parts", 1, "--json")
    assert json.loads(out)["backend"] == "onnxruntime cpu fp32"


def test_another_runtime_in_int8_by_name_is_warned_of(agent, place, caplog):
    tiny_bundle(place / "bundle", precisions=("fp32", "int8"))
    options = ("--good", place / "parts", "--max-false-reject", "5%", "--json")
    named = ("--backend", "onnxruntime", "--precision", "int8")
    assert agent("calibrate", "--bundle", place / "bundle", *options, *named)[0] == 0
    config = left_to_auto(place)
    _, out, _ = agent("run", "--config", config, "--parts", 1, "--json")
    assert json.loads(out)["backend"] == "onnxruntime cpu int8"
    # That there is no broker is all it has to say.
    assert {each.name for each in caplog.records} <= {"atac_agent.sink"}
    code, _, error = agent("run", "--config", left_to_auto(place, ", precision: fp32"))
    assert code == 2
    assert "was made for int8, not for fp32" in error


def test_a_line_planned_for_a_gpu_stops_without_one(agent, place):
    calibrated(agent, place, configured(place, FALLBACK))
    code, out, error = agent("run", "--config", configured(place))
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert "no NVIDIA driver here" in error
    assert not (place / "ledger.sqlite").exists()


def test_the_doctor_fails_without_a_fallback_and_warns_with_one(agent, place):
    levels = []
    for fallback in ("", FALLBACK):
        _, out, _ = agent("doctor", "--config", configured(place, fallback), "--json")
        (finding,) = (each for each in json.loads(out) if each["check"] == "backend")
        levels.append(finding["level"])
        assert "no NVIDIA driver here" in finding["message"]
    assert levels == ["fail", "warn"]


def test_calibrating_with_the_lines_camera_takes_the_lines_inspector(agent, place, kernels):
    with gpu_machine(kernels):
        assert agent("build", "--bundle", place / "bundle")[0] == 0
        code, out, error = calibrated(agent, place, configured(place))
    assert (code, error) == (0, "scoring good parts: 62 parts\n")
    assert json.loads(out)["backend"] == f"tensorrt {GPU.name} fp32, all on the device"
    assert np.isfinite(json.loads(out)["threshold"])


def test_the_doctor_tries_the_whole_inspection(agent, place, kernels):
    with gpu_machine(kernels):
        assert agent("build", "--bundle", place / "bundle")[0] == 0
        _, out, _ = agent("doctor", "--config", configured(place), "--json")
    (finding,) = (each for each in json.loads(out) if each["check"] == "backend")
    assert finding["level"] == "ok"
    assert "all on the device, one run in" in finding["message"]
