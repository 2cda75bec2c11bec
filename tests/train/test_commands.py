import io
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import typer
from typer.testing import CliRunner

from agent.commands.calibrate import calibrate
from agent.commands.evaluate import evaluate
from agent.commands.export import export
from agent.commands.progress import Progress
from agent.commands.train import _say_epoch, _say_split, _settings, train, usual_recipe
from calibration.record import read_calibration
from engine.bundle import open_bundle
from engine.errors import ConfigurationError, TrainingError
from tests.tiny_bundle import cross_fitted
from train.backbones.resnet import ResNet, ResNetBackbone
from train.checkpoint import Epoch
from train.datasets import find_source, unseen_images
from train.recipes.nearest import Nearest


@pytest.fixture(scope="session")
def agent():
    app = typer.Typer(pretty_exceptions_enable=False)
    for command in (train, export, calibrate, evaluate):
        app.command()(command)

    def run(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def save_weights(path, stage):
    """A checkpoint whose BatchNorm looks as if it had been trained."""
    torch.manual_seed(0)
    backbone = ResNetBackbone(ResNet(architecture="resnet18", stages=(stage,)))
    for part in backbone.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.01)
    safetensors.torch.save_file(dict(backbone.state_dict()), path)


SMALL = ("--backbone", "resnet18", "--stage", "layer2", "--epochs", 1)


@pytest.fixture(scope="session")
def trained(agent, parts, quick, tmp_path_factory):
    """Trained by the command; a frozen backbone is quickest."""
    folder = tmp_path_factory.mktemp("commands")
    out, weights = folder / "bundle", folder / "weights.safetensors"
    save_weights(weights, "layer2")
    result = agent(
        *("train", "--data", parts, "--out", out, "--recipe", quick),
        *("--backbone-weights", weights, *SMALL, "--json"),
    )
    assert result.exit_code == 0, result.output
    stages = [
        "reading the images, looking for copies",
        "training",
        "epoch 1/1",
        "writing the bundle, comparing its network with the trained one",
        "writing the report",
    ]
    said = dict.fromkeys(line.partition(":")[0] for line in result.stderr.splitlines())
    assert [stage for stage in said if stage in stages] == stages
    return out, json.loads(result.stdout)


def test_train_tells_what_it_made(trained, parts):
    out, answer = trained
    bundle = open_bundle(out)
    assert answer["id"] == bundle.id
    assert answer["training"]["backbone"] == "resnet18 layer2"
    assert answer["training"]["defective"] == 5
    pretrained = answer["training"]["pretrained"]
    assert pretrained.startswith("weights.safetensors (tensors' SHA-256 ")
    assert [epoch["number"] for epoch in answer["epochs"]] == [1]
    assert Path(answer["report"]) == out / "training.html"
    assert "What to do next" in (out / "training.html").read_text()
    assert not out.with_name("bundle.training").exists()
    assert len(unseen_images(find_source(parts, None, None), bundle)) == 11


def test_evaluate_prints_a_table_and_json(trained, agent, parts):
    out, _ = trained
    table = agent("evaluate", "--bundle", out, "--data", parts)
    statement, promise, _, *rows, pixels = table.stdout.splitlines()
    assert re.fullmatch(
        r"Of 5 defects [0-5] score above all 6 good parts\. Next: agent calibrate sets .*",
        statement,
    )
    # Five of the six good parts set the threshold, the sixth is judged, in all six ways.
    assert promise.startswith("Where at most 45 % of good parts are rejected, with 95 % confidence")
    assert "by 5 good parts of the test, parted in all ways" in promise
    assert [row.split()[0] for row in rows] == ["all", "scratch", "spot"]
    assert pixels.startswith("pixels: AUROC ")
    assert "there is no calibration yet" in table.stderr
    answer = json.loads(agent("evaluate", "--bundle", out, "--data", parts, "--json").stdout)
    assert (answer["overall"]["good"], answer["overall"]["defective"]) == (6, 5)
    assert answer["at_threshold"] is None


def test_a_calibrated_bundle_counts_errors_and_gates_on_its_threshold(
    trained, agent, parts, tmp_path
):
    out = Path(shutil.copytree(trained[0], tmp_path / "bundle"))
    agent(
        "calibrate",
        *("--bundle", out, "--good", parts / "test/good"),
        *("--max-false-reject", "50%", "--confidence", "90%"),
    )
    record = read_calibration(open_bundle(out), precision="fp32").calibration

    answer = json.loads(agent("evaluate", "--bundle", out, "--data", parts, "--json").stdout)
    at = answer["at_threshold"]
    assert at["threshold"] == record.threshold
    assert at["false_rejects"] == record.exceedances
    assert at["misses"] == len(at["missed"])
    # Six parts carry 39 % at 95 %; all of them set the threshold, so none is left to be judged.
    [promise] = answer["promises"]
    assert promise["scores_of"] == "the calibration"
    assert promise["by_kind"]["all"]["promised"] == pytest.approx(1 - 0.05 ** (1 / 6))
    assert promise["by_kind"]["all"]["false_rejects"] is None
    assert set(promise["by_kind"]) == {"all", "scratch", "spot"}
    assert agent("evaluate", "--bundle", out, "--data", parts).stdout.startswith(
        f"Of 5 defects {5 - at['misses']} found, of 6 good parts {at['false_rejects']} rejected, "
    )

    gated = agent(
        "export",
        "--bundle",
        out,
        "--precision",
        "fp16",
        "--data",
        parts,
        "--accept-flips",
        "--json",
    )
    parity = json.loads(gated.stdout)["parity"]["onnxruntime cpu fp16"]
    assert (parity["threshold"], parity["threshold_from"]) == (record.threshold, "calibration")
    assert "fp16" in open_bundle(out).manifest.networks


def test_export_asks_for_the_images_of_the_training(trained, agent, parts):
    out, _ = trained
    with pytest.raises(
        TrainingError, match=r"is not there; give --data, or --good and --defective"
    ):
        agent("export", "--bundle", out, "--precision", "fp16", "--good", parts / "train/good")


def test_cross_fitted_scores_judge_the_test_where_there_is_no_calibration(
    trained, agent, parts, tmp_path
):
    out = Path(shutil.copytree(trained[0], tmp_path / "bundle"))
    cross_fitted(open_bundle(out), [1e6 + i for i in range(320)])
    answer = json.loads(agent("evaluate", "--bundle", out, "--data", parts, "--json").stdout)
    three, one = answer["promises"]
    assert three["scores_of"] == one["scores_of"] == "training, each scored without itself"
    assert (three["by_kind"]["all"]["promised"], one["by_kind"]["all"]["promised"]) == (0.03, 0.01)
    assert (one["by_kind"]["all"]["found"], one["by_kind"]["all"]["false_rejects"]) == (0, 0)
    said = agent("evaluate", "--bundle", out, "--data", parts).stdout
    assert "at most 1 % of good parts are rejected, estimated with the bound of 95 % conf" in said
    assert "Rejected here: 0 %." in said


def test_every_image_used_in_training_is_refused_for_evaluation(trained, agent, parts):
    out, _ = trained
    with pytest.raises(ConfigurationError, match="no image that training has not seen"):
        agent("evaluate", "--bundle", out, "--good", parts / "train/good")


def test_a_recipe_without_epochs_says_what_it_does_instead(split):
    said = io.StringIO()
    with Progress(said) as progress:
        _say_split(progress, Nearest(), split)
        epoch = Epoch(number=1, of=1, loss=0.0, learning_rate=0.0, separation=0.9, seconds=1.0)
        _say_epoch(progress, Nearest(), None, epoch)
        _say_epoch(progress, Nearest(), None, replace(epoch, separation=math.nan))
    assert "epoch" not in said.getvalue()
    assert "loss" not in said.getvalue()
    assert Nearest.stage in said.getvalue()
    assert "\nheld-out good against known defects: AUROC 0.900\n" in said.getvalue()


@pytest.mark.parametrize(
    ("weights", "epochs", "recipe"),
    [(["r50.pth"], None, "nearest"), (["none"], None, "line"), (["r50.pth"], 3, "line")],
)
def test_who_names_no_recipe_hears_which_it_is_and_why(weights, epochs, recipe):
    found, why = usual_recipe(weights, epochs)
    assert found == recipe
    assert why


def test_weights_must_be_chosen(agent, parts, tmp_path):
    with pytest.raises(ConfigurationError, match=r"resnet50-0676ba61\.pth .* or give 'none'"):
        agent("train", "--data", parts, "--out", tmp_path / "out")


def test_paper_without_layer4_names_the_way_out(agent, parts, tmp_path):
    path = tmp_path / "short.safetensors"
    save_weights(path, "layer3")
    with pytest.raises(ConfigurationError, match="choose --stage layer3"):
        agent(
            "train",
            *("--data", parts, "--out", tmp_path / "out", "--recipe", "paper"),
            *("--backbone", "resnet18", "--backbone-weights", path),
        )
    assert not (tmp_path / "out").exists()


def test_a_folder_without_enough_good_images_fails_before_training(agent, parts, tmp_path):
    (tmp_path / "good").mkdir()
    shutil.copy(parts / "train/good/000.png", tmp_path / "good")
    with pytest.raises(TrainingError, match="has only 1 different good images, which leaves 0"):
        agent(
            "train",
            *("--data", tmp_path, "--out", tmp_path / "out", "--backbone-weights", "none"),
        )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ("--recipe", "nearest", "--backbone-weights", "none"),
            "--backbone-weights: 'none': is not for nearest, which trains no backbone",
        ),
        (
            ("--recipe", "cookbook"),
            "--recipe: 'cookbook': write line or nearest or paper or two_stage",
        ),
        (
            ("--recipe", "two_stage", "--epochs", "1"),
            "--epochs: '1': two stages need two epochs or more",
        ),
        (("--recipe", "two_stage"), "the backbone resnet18 layer2+layer3 needs weights: download "),
        (("--backbone", "vgg16"), "--backbone: 'vgg16': is not known; write densenet121 or"),
        (("--stage", "layer7"), "--stage: 'layer7': a ResNet has layer2, layer3, layer4"),
        (("--backbone-weights", "download"), "is not for resnet50"),
    ],
)
def test_wrong_options_are_told_in_one_line(agent, parts, tmp_path, given, said):
    with pytest.raises(ConfigurationError) as error:
        agent("train", "--data", parts, "--out", tmp_path / "out", *given)
    assert said in str(error.value)


def test_help_shows_an_example(agent):
    for command in ("train", "export", "evaluate"):
        assert f"Example: agent {command}" in agent(command, "--help").stdout


def test_a_bundles_recipe_is_used_again_with_all_its_settings(tmp_path):
    recipe = Path(__file__).parents[2] / "agent" / "demo_bundle" / "recipe.json"
    settings = _settings(str(recipe), None, None, None, 3)
    assert (settings.type, settings.view.side, settings.epochs) == ("line", 304, 3)
    (tmp_path / "recipe.json").write_text('{"type": "nothing"}')
    for path in (tmp_path / "recipe.json", tmp_path / "nowhere.json"):
        with pytest.raises(ConfigurationError, match="--recipe"):
            _settings(str(path), None, None, None, None)


def test_commands_load_torch_only_when_they_run():
    code = (
        "import sys, agent.commands.train, agent.commands.export, agent.commands.evaluate;"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "False"
