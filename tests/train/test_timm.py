"""Backbones of timm with random weights: from training to verdicts."""

import importlib.util
import json
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from engine.bundle import open_bundle
from engine.errors import ConfigurationError
from tests.train.test_commands import agent  # noqa: F401
from train.backbones import BACKBONES, named_backbone
from train.weights import Weights

MODELS = ("mobilenetv3_small_050", "vit_tiny_patch16_224")
TRAINED = {"CNN": MODELS[0], "ViT": "test_vit"}  # of the same blocks as the other, but fewer


def _define_operators():
    """Declare the operators that torchvision registers shapes for.

    A wheel of torchvision for CUDA cannot load them beside a torch for CPUs. timm needs none.
    """
    found = importlib.util.find_spec("torchvision")
    text = (Path(found.origin).parent / "_meta_registrations.py").read_text()
    for name in set(re.findall(r'"torchvision::(\w+)"', text)):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(...) -> (...)")


@pytest.fixture(scope="module")
def timm():
    if importlib.util.find_spec("timm") is None:
        pytest.skip("needs timm: pip install '.[timm]'")
    try:
        import timm
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] in {"timm", "torchvision"}]:
            del sys.modules[name]
        _define_operators()
        import timm
    return timm


@pytest.fixture(scope="module", params=TRAINED)
def trained(request, timm, agent, parts, quick, tmp_path_factory):  # noqa: F811
    """A bundle of `agent train`, from a checkpoint with random weights."""
    folder = tmp_path_factory.mktemp("timm")
    name = TRAINED[request.param]
    torch.manual_seed(0)
    torch.save(timm.create_model(name).state_dict(), folder / "weights.pth")
    result = agent(
        *("train", "--data", parts, "--out", folder / "bundle", "--recipe", quick),
        *("--backbone", f"timm:{name}"),
        *("--backbone-weights", folder / "weights.pth", "--epochs", 1, "--defects", 4),
        *("--hold-out", 0.25, "--accept-flips", "--json"),
    )
    assert result.exit_code == 0, result.output
    return open_bundle(folder / "bundle"), json.loads(result.stdout)


def test_a_model_goes_from_training_to_verdicts(trained, agent, parts, tmp_path):  # noqa: F811
    bundle, answer = trained
    name = answer["training"]["backbone"]
    assert name in ("timm:mobilenetv3_small_050 2+3", "timm:test_vit 2+4")
    side = 12 if "mobilenet" in name else 6
    assert bundle.manifest.method.network.outputs["score_map"] == (side, side)
    parity = json.loads(bundle.read("parity.json"))["onnxruntime cpu fp32"]
    assert parity["max_score_difference"] < 0.01
    good = parts / "test" / "good"
    calibrated = agent(
        *("calibrate", "--bundle", bundle.path, "--good", good, "--backend", "onnxruntime"),
        *("--max-false-reject", "50%", "--confidence", "90%"),
    )
    assert calibrated.exit_code == 0, calibrated.output
    config = tmp_path / "agent.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "agent": {"id": "line1"},
                "bundle": {"path": str(bundle.path)},
                "camera": {"type": "folder", "path": str(good)},
                "ledger": {"path": str(tmp_path / "ledger.sqlite")},
                "mqtt": {"host": "127.0.0.1", "port": 1, "drain_s": 0},
            }
        )
    )
    program = "from agent.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", program, "run", "--config", config, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout)
    assert summary["triggers"] == summary["inspected"] == len(list(good.iterdir()))
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as ledger:
        scores = [score for (score,) in ledger.execute("SELECT score FROM triggers")]
    assert len(set(scores)) == len(scores) == summary["triggers"]


def test_a_model_is_exported_in_int8(trained, agent, parts):  # noqa: F811
    bundle, _ = trained
    precision = "int8"
    done = agent(
        *("export", "--bundle", bundle.path, "--precision", precision, "--data", parts),
        *("--accept-flips", "--json"),
    )
    assert done.exit_code == 0, done.output
    judged = json.loads(done.stdout)["parity"][f"onnxruntime cpu {precision}"]
    assert np.isfinite(judged["max_score_difference"])


@pytest.mark.usefixtures("timm")
def test_levels_follow_the_strides_that_a_recipe_wants():
    cnn, vit = (named_backbone(f"timm:{name}", (8, 16)) for name in MODELS)
    assert (cnn.levels, cnn.strides) == ((2, 3), (8, 16))
    assert (vit.levels, vit.strides) == ((4, 9), (16, 16))
    assert vit.up_to("11").levels == (4, 9, 11)
    assert named_backbone(f"timm:{MODELS[1]}", (32,)).levels == (11,)
    with pytest.raises(ConfigurationError, match="has the levels 0 … 11"):
        vit.up_to("12")
    with pytest.raises(ConfigurationError, match="timm:nothing_like_it"):
        named_backbone("timm:nothing_like_it", (8,))


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_is_fitted_to_the_size_of_the_views(timm, name):
    torch.manual_seed(0)
    saved = timm.create_model(name).state_dict()
    settings = named_backbone(f"timm:{name}", (8, 16))
    backbone = BACKBONES.of(settings).open(settings, side=96)
    before = [parameter for _, parameter in backbone.named_parameters()]
    backbone.load(Weights(source="weights.pth", tensors=saved))
    assert all(a is b for a, b in zip(before, backbone.parameters(), strict=True))
    for key, tensor in backbone.model.state_dict().items():
        if key != "pos_embed":
            assert torch.equal(tensor, saved[key])
    with torch.inference_mode():
        maps = backbone.eval()(torch.zeros(1, 3, 96, 96))
    assert [m.shape[1] for m in maps] == list(backbone.channels)
    assert [96 // m.shape[2] for m in maps] == list(backbone.strides)
    with pytest.raises(ConfigurationError, match=f"does not fit {name}"):
        backbone.load(Weights(source="other.pth", tensors={"x": torch.zeros(1)}))


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigurationError, match=r"pip install '\.\[timm\]'"):
        named_backbone("timm:resnet10t", (8,))
