"""docs/install.md: its commands, run as they are written, in folders of the test."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from agent.settings import load_config
from tests.fresh_environment import FreshEnvironment

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "install.md").read_text()
UNIT = (ROOT / "docs" / "systemd" / "atac-agent.service").read_text()
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith("    ")]
(CONFIGURATION,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
NEEDS_ROOT = ("useradd", "systemctl", "install -d -o atac", "chown")


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """A root folder of a device, on which every command of the page has been run."""
    root = tmp_path_factory.mktemp("device")
    source = root / "source"
    source.mkdir()
    for name in ("agent.yaml", "constraints.txt", "docs"):
        path = ROOT / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, source / name)
    shutil.copytree(ROOT / "agent" / "demo_bundle", source / "model")
    (root / "etc/systemd/system").mkdir(parents=True)
    (root / "var/lib/atac/parts").mkdir(parents=True)
    environment = FreshEnvironment(root / "opt/atac")
    for command in COMMANDS:
        here = re.sub(r"(?<![\w.])/(opt|etc|var)/", rf"{root}/\1/", command)
        if command.startswith(NEEDS_ROOT) or "agent doctor" in command:
            continue
        if "-m venv" in command or "pip install" in command:
            environment.bin.parent.parent.mkdir(parents=True, exist_ok=True)
            continue
        subprocess.run(shlex.split(here), cwd=source, check=True)
    environment.make()
    return root, environment


def test_the_commands_make_an_agent_that_only_lacks_its_broker(device):
    root, environment = device
    configuration = root / "etc/atac/agent.yaml"
    assert configuration.stat().st_mode & 0o777 == 0o644
    configuration.write_text(CONFIGURATION.replace("/var/", f"{root}/var/"))
    (asked,) = [line for line in COMMANDS if "agent doctor" in line]
    named = asked.split(" --config ")[1]
    done = environment.ran("agent", "doctor", "--json", "--config", f"{root}{named}")
    found = {each["check"]: each["level"] for each in json.loads(done.stdout)}
    wrong = {check for check, level in found.items() if level == "fail"}
    assert wrong == {"broker"}, done.stdout


def test_the_wheel_holds_every_file_of_the_packages(device):
    _, environment = device
    (installed,) = (environment.bin.parent / "lib").glob("python*/site-packages")
    for name in ("agent", "calibration", "engine", "train"):
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert (installed / path.relative_to(ROOT)).is_file(), path


def test_the_agent_writes_only_where_the_unit_lets_it(tmp_path):
    (tmp_path / "agent.yaml").write_text(CONFIGURATION)
    config = load_config(tmp_path / "agent.yaml")
    assert "ProtectSystem=strict" in UNIT
    assert "StateDirectory=atac\n" in UNIT
    for path in (config.ledger.path, config.evidence.folder):
        assert path.is_relative_to("/var/lib/atac")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_lets_the_agent_do_little():
    unit = ROOT / "docs" / "systemd" / "atac-agent.service"
    ask = ["systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager", unit]
    done = subprocess.run(ask, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd rates no unit that is not installed")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_allows_every_system_call_of_a_run(tmp_path):
    tracer = shutil.which("strace")
    if tracer is None or subprocess.run([tracer, "-qq", "true"], check=False).returncode:
        pytest.skip("strace is not installed or may not trace here: apt-get install strace")
    (tmp_path / "in").mkdir()
    Image.new("L", (64, 64)).save(tmp_path / "in" / "part.png")
    (tmp_path / "agent.yaml").write_text(
        f"agent: {{id: a}}\nbundle: {{path: {ROOT / 'agent' / 'demo_bundle'}}}\n"
        "cameras:\n  - {name: folder, type: folder, path: in}\n"
        "  - {name: drawn, type: conveyor, parts: 20}\n"
        "evidence: {folder: evidence}\nmqtt: {host: 127.0.0.1, port: 1, drain_s: 0}\n"
    )
    agent = [sys.executable, "-c", "from agent.cli import main; main()"]
    subprocess.run(
        [*(tracer, "-f", "-qq", "-c", "-o", tmp_path / "calls"),
         *(*agent, "run", "--config", tmp_path / "agent.yaml")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=True, capture_output=True,
    )  # fmt: skip
    rows = (tmp_path / "calls").read_text().splitlines()[2:-2]
    used = {row.split()[3 if len(row.split()) == 4 else -1] for row in rows}
    # SQLite asks for it where it runs as root, which a service does not.
    assert used - allowed("@system-service") | used & allowed("@privileged") <= {"fchown"}


def allowed(group):
    """The system calls of a group of systemd's."""
    asked = subprocess.run(
        ["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True
    )
    found = {line.strip() for line in asked.stdout.splitlines()[1:] if line.startswith(" ")}
    inner = {name for name in found if name.startswith("@")}
    return (found - inner).union(*map(allowed, inner))


def test_page_and_unit_name_the_same_places():
    start = re.search(r"^ExecStart=(\S+) run --config (\S+)$", UNIT, re.MULTILINE)
    assert f"{start[1]} doctor --config {start[2]}" in PAGE
    assert "RestartPreventExitStatus=2" in UNIT


def test_no_text_names_the_product_as_if_it_were_on_an_index():
    named = re.compile(r"pip install (-\S+ \S+ )*['\"]?atac-agent\b(?!`)")
    texts = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for name in ("agent", "calibration", "engine", "train"):
        texts += (ROOT / name).rglob("*.py")
    assert not [path.name for path in texts if named.search(path.read_text())]


def test_the_locked_requirements_are_those_of_the_product_with_hashes():
    def pins(text):
        found = re.findall(r"^([\w.-]+)==([^\s\\]+)", text, re.MULTILINE)
        return {name.lower().replace("_", "-"): version for name, version in found}

    text = (ROOT / "requirements.txt").read_text()
    locked, known = pins(text), pins((ROOT / "constraints.txt").read_text())
    assert {name: known.get(name) for name in locked} == locked
    for entry in text.split("==")[1:]:
        assert "--hash=sha256:" in entry
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for wanted in (*project["dependencies"], *extras["cpu"], *extras["sign"]):
        assert re.split(r"[<>=]", wanted)[0] in locked


def test_every_extra_that_a_text_names_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    pages = [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for names in re.findall(r"'\.\[([\w,]+)\]'", page.read_text()):
            assert set(names.split(",")) <= extras, page
