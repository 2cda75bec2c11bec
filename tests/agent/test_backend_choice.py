"""Which backend runs is the configuration's choice; nothing falls back by itself."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from agent import cli
from agent.config import load_config
from engine.backends import cuda_driver
from engine.errors import ConfigurationError
from tests.engine.gpu_machine import gpu_machine
from tests.engine.scripted_gpu import GPU
from tests.tiny_bundle import good_part, tiny_bundle

CONFIGURATION = """\
agent: {{id: line-3}}
bundle: {{path: bundle, backend: tensorrt{fallback}}}
camera: {{type: folder, path: parts}}
mqtt: {{host: 127.0.0.1, port: 1}}
"""
FALLBACK = ", fallback: onnxruntime"


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
    monkeypatch.setattr(cuda_driver, "_LIBRARY", "libcuda-that-is-not-there.so.1")
    tiny_bundle(tmp_path / "bundle")
    (tmp_path / "parts").mkdir()
    for seed in range(62):
        Image.fromarray(good_part(seed)).save(tmp_path / "parts" / f"{seed:03}.png")
    return tmp_path


def configured(place, fallback=""):
    path = place / "agent.yaml"
    path.write_text(CONFIGURATION.format(fallback=fallback))
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
    assert (code, error) == (0, "")
    assert json.loads(out)["backend"] == f"tensorrt {GPU.name} fp32, all on the device"
    assert np.isfinite(json.loads(out)["threshold"])


def test_the_doctor_tries_the_whole_inspection(agent, place, kernels):
    with gpu_machine(kernels):
        assert agent("build", "--bundle", place / "bundle")[0] == 0
        _, out, _ = agent("doctor", "--config", configured(place), "--json")
    (finding,) = (each for each in json.loads(out) if each["check"] == "backend")
    assert finding["level"] == "ok"
    assert "all on the device, one run in" in finding["message"]
