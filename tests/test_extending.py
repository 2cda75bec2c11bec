"""The package of examples/extending, installed beside the agent and used by its commands."""

import json
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.fresh_environment import FreshEnvironment
from tests.training_parts import parts, quick  # noqa: F401 - fixtures

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "extending"
CONFIGURATION = f"""\
agent: {{id: line-3}}
bundle: {{path: {ROOT / "agent" / "demo_bundle"}}}
camera: {{type: noise, name: top}}
mqtt: {{host: 127.0.0.1, port: 9}}
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    environment = FreshEnvironment(tmp_path_factory.mktemp("fresh"))
    environment.make()
    return environment


@pytest.fixture(scope="module")
def extended(fresh, tmp_path_factory):
    source = tmp_path_factory.mktemp("examples") / "examples"
    shutil.copytree(EXAMPLES, source, ignore=shutil.ignore_patterns("__pycache__"))
    fresh.install(source)
    return fresh


def run(environment, folder, text, *arguments):
    (folder / "agent.yaml").write_text(text)
    return environment.ran("agent", "run", *arguments, cwd=folder)


def test_a_camera_of_another_package_runs(extended, tmp_path):
    done = run(extended, tmp_path, CONFIGURATION, "--parts", "3", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["triggers"] == 3


def test_a_trigger_of_another_package_announces_the_parts(extended, tmp_path):
    camera = "{type: conveyor, parts_per_minute: 600, trigger: {type: timer, every_s: 0.5}}"
    text = CONFIGURATION.replace("{type: noise, name: top}", camera)
    assert camera in text
    done = run(extended, tmp_path, text, "--parts", "3", "--json")
    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as ledger:
        ids = [one for (one,) in ledger.execute("SELECT part_id FROM triggers ORDER BY sequence")]
    assert ids == ["timer-1", "timer-2", "timer-3"]


def test_a_sink_of_another_package_gets_every_alarm(extended, tmp_path):
    before, _, _ = CONFIGURATION.partition("mqtt:")
    text = f"{before}sinks: [{{type: alarm_file, path: alarms.txt}}]\n"
    done = run(extended, tmp_path, text, "--parts", "3", "--json")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)["counts"]
    lines = (tmp_path / "alarms.txt").read_text().splitlines()
    assert len(lines) == 3 - counts["OK"] > 0
    assert {line.split()[1] for line in lines} <= {"NG", "ERROR", "TIMEOUT"}


def test_a_service_of_another_package_reads_the_status(extended, tmp_path):
    text = f"{CONFIGURATION}services: [{{type: status_file, path: parts.txt}}]\n"
    done = run(extended, tmp_path, text, "--parts", "3")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[0-3] parts\n", (tmp_path / "parts.txt").read_text())


def test_doctor_and_help_name_what_the_package_adds(extended, tmp_path):
    (tmp_path / "agent.yaml").write_text(CONFIGURATION)
    told = extended.ran("agent", "doctor", cwd=tmp_path).stdout
    assert "noise gives 640×480 mono frames" in told
    assert "plug-ins       camera noise of atac-examples" in told
    assert "reference" in extended.ran("agent", "bench", "--help").stdout


def test_a_type_that_nobody_adds_is_refused_and_those_that_are_there_are_named(extended, tmp_path):
    done = run(extended, tmp_path, CONFIGURATION.replace("noise", "radar"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "camera.type: 'radar': write " in done.stderr
    assert " or conveyor or folder or " in done.stderr
    assert " or noise or " in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        "--recipe average",
        "--recipe recipe.json --backbone pixels --backbone-weights none --epochs 1 --accept-flips",
    ],
)
def test_a_recipe_and_a_backbone_of_another_package_train(
    extended,
    parts,  # noqa: F811
    quick,  # noqa: F811
    tmp_path,
    options,
):
    shutil.copy(quick, tmp_path)
    written = ("--data", parts, "--out", "bundle", "--defects", "4", "--hold-out", "0.25")
    done = extended.ran("agent", "train", *written, *options.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bundle" / "manifest.json").is_file()


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.stem)
def test_the_page_shows_each_file_as_it_is_and_none_is_long(path):
    page = (ROOT / "docs" / "extending.md").read_text()
    text = path.read_text()
    assert len(text.splitlines()) < 60
    if path.name != "__init__.py":
        assert f"```python\n{text}```" in page


def test_the_page_shows_the_project_as_it_is():
    page = (ROOT / "docs" / "extending.md").read_text()
    assert f"```toml\n{(EXAMPLES / 'pyproject.toml').read_text()}```" in page
