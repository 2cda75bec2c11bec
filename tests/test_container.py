"""The container's files: what they promise, and their steps in a fresh environment."""

import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from agent.settings import load_config
from tests.fresh_environment import FreshEnvironment

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "container"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
PAGE = (ROOT / "docs" / "container.md").read_text()
_BASE_MB = 125
"""Debian's slim image with Python: what `docker build` adds to, seen with buildah."""


def stages():
    """The instructions of each stage of the Dockerfile, as pairs of name and argument."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    found = []
    for name, _, rest in (line.partition(" ") for line in lines):
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append((name, rest))
    return found


def test_the_image_runs_as_nobody_in_particular_and_says_how_it_is():
    *_, last = stages()
    said = dict(last)
    assert int(said["USER"]) > 1000
    assert said["HEALTHCHECK"].startswith("--interval=")
    assert "/healthy" in said["HEALTHCHECK"]
    assert said["VOLUME"] == said["WORKDIR"] == "/var/lib/atac"
    names = [name for name, _ in last]
    assert "ADD" not in names
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in {"RUN", "COPY"})


def test_what_is_installed_is_pinned_and_leaves_no_lists():
    base = re.search(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)[1]
    assert ":" in base
    assert not base.endswith(":latest")
    runs = [rest for stage in stages() for name, rest in stage if name == "RUN"]
    for run in runs:
        if "apt-get install" in run:
            assert "--no-install-recommends" in run
            assert "rm -rf /var/lib/apt/lists/*" in run
        for install in re.findall(r"pip install [^&]+", run):
            assert "--require-hashes -r requirements.txt" in install or "--no-deps" in install
            assert "--no-compile" in install


def test_everything_that_is_copied_is_there_and_not_ignored():
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"]
    for name, rest in (each for stage in stages() for each in stage):
        if name == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(source == each or source.startswith(f"{each}/") for each in kept), source


def test_compose_takes_every_right_that_is_not_needed():
    for name, service in COMPOSE["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert not service.get("privileged")
        if "build" not in service:
            assert not service["image"].endswith(":latest")
            assert ":" in service["image"]
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")
    assert COMPOSE["services"]["agent"]["tmpfs"] == ["/tmp"]


def test_compose_gives_the_configurations_what_they_name(monkeypatch):
    agent = COMPOSE["services"]["agent"]
    for name in set(re.findall(r"\$\{(\w+)\}", (FOLDER / "agent.yaml").read_text())):
        assert name in agent["environment"]
        monkeypatch.setenv(name, "x")
    config = load_config(FOLDER / "agent.yaml")
    (metrics,) = config.services
    assert metrics.token_variable in agent["environment"]
    assert config.ledger.path.is_relative_to("/var/lib/atac")
    assert config.evidence.folder.is_relative_to("/var/lib/atac")
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source, target = (
                volume.rpartition(":ro")[0].rsplit(":", 1)
                if ":ro" in volume
                else (volume.split(":"))
            )
            source = re.sub(r"\$\{\w+:-(.*)\}", r"\1", source)
            assert source in COMPOSE["volumes"] or (ROOT / source).exists(), source
            assert target.startswith("/")


def test_the_page_shows_the_configuration_as_it_is():
    (shown,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    written = (FOLDER / "agent.yaml").read_text()
    assert shown == "".join(line for line in written.splitlines(True) if line[0] != "#")


def test_prometheus_takes_its_configuration(tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    text = (FOLDER / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus", str(tmp_path)))
    (tmp_path / "atac-token").write_text("x")
    shutil.copy(ROOT / "docs" / "metrics" / "alerts.yml", tmp_path)
    done = subprocess.run(
        [promtool, "check", "config", tmp_path / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """An environment that has nothing but what the image would install, trimmed as the image is."""
    environment = FreshEnvironment(tmp_path_factory.mktemp("image"))
    environment.make()
    (site,) = (environment.bin.parent / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").unlink()
    locked = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    for name in locked:
        for file in importlib.metadata.files(name) or ():
            target = site / file
            if ".." in file.parts or "__pycache__" in file.parts or not file.locate().is_file():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file.locate(), target)
            except OSError:
                shutil.copy(file.locate(), target)
    subprocess.run(["sh", FOLDER / "trim.sh", environment.bin.parent], check=True)
    return environment, site


def test_the_image_stays_below_600_mb(image):
    _, site = image
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    assert size / 1e6 + _BASE_MB < 600


def test_what_the_image_holds_inspects(image, tmp_path):
    environment, _ = image
    bundle = tmp_path / "agent" / "demo_bundle"
    shutil.copytree(ROOT / "agent" / "demo_bundle", bundle)
    shutil.copy(ROOT / "agent.yaml", tmp_path)
    done = environment.ran("agent", "run", "--config", "agent.yaml", "--parts", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 parts" in done.stdout
    code = (
        "from pathlib import Path; from engine.bundle import open_bundle\n"
        "from engine.backends.opening import open_inspector\n"
        f"bundle = open_bundle(Path({str(bundle)!r}))\n"
        "with open_inspector(bundle, backend='openvino', precision='fp32') as one: one.warm_up()\n"
    )
    done = environment.ran("python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
