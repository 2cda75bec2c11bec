"""The rules that no single module can keep: imports, packaging, documents that match the code."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from agent.cli import COMMANDS
from agent.settings import load_config

ROOT = Path(__file__).parents[1]
PACKAGES = ("agent", "calibration", "engine", "train")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def imported(module: Path) -> set[str]:
    """The top-level names of all that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative import"
            names.add((node.module or "").partition(".")[0])
    return names


def ran(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_data_flows_one_way():
    done = ran(Path(sys.executable).with_name("lint-imports"), "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


EXAMPLES = [
    pytest.param(example, id=f"{page.stem}-{number}")
    for page in sorted((ROOT / "docs").glob("*.md"))
    for number, example in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL))
    if example.startswith("agent:")
]
"""Configurations that stand in a document as a whole."""


@pytest.mark.parametrize("example", EXAMPLES)
def test_complete_examples_in_documents_load(example, tmp_path, monkeypatch):
    for name in re.findall(r"(?<!\$)\$\{(\w+)\}", example):
        monkeypatch.setenv(name, "x")
    (tmp_path / "agent.yaml").write_text(example)
    assert load_config(tmp_path / "agent.yaml").agent.id
    # With every key that is shown behind a #, too.
    (tmp_path / "agent.yaml").write_text(re.sub(r"#(?=[a-z_]+: )", "", example))
    assert load_config(tmp_path / "agent.yaml").agent.id


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        ("paho", {"agent/mqtt/link.py"}),
        ("yaml", {"agent/settings_file.py"}),
        ("amqtt", {"agent/sinks/mqtt/broker.py"}),
        ("prometheus_client", {"agent/services/metrics/exposition.py"}),
        ("argon2", {"agent/services/page/access.py"}),
        ("uvicorn", {"agent/services/page/server.py"}),
        ("asyncua", {"agent/opcua/client.py", "agent/opcua/variables.py", "agent/opcua/vision.py"}),
        ("ray", {"agent/fleet/training.py"}),
        ("pickle", set()),
    ],
)
def test_third_parties_have_one_home(package, homes):
    users = {path.relative_to(ROOT).as_posix() for path in MODULES if package in imported(path)}
    assert users == homes


def test_torch_stays_in_train():
    users = {path.relative_to(ROOT).parts[0] for path in MODULES if "torch" in imported(path)}
    assert users == {"train"}


def test_every_package_is_shipped_and_no_other():
    found = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in MODULES}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == found


def test_every_file_beside_the_code_is_shipped():
    data = PYPROJECT["tool"]["setuptools"]["package-data"]
    shipped = {
        path
        for package, patterns in data.items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    files = {path for name in PACKAGES for path in (ROOT / name).rglob("*.*") if path.is_file()}
    assert {path for path in files if path.suffix not in {".py", ".pyc"}} <= shipped


def test_no_module_is_named_like_a_package_or_an_attic():
    names = {path.stem for path in MODULES if path.name != "__init__.py"}
    names -= {path.stem for path in MODULES if path.parent.name == "commands"}
    assert not names & {*PACKAGES, "utils", "util", "common", "helpers", "helper", "manager"}


def test_no_other_distribution_shadows_our_names():
    providers = importlib.metadata.packages_distributions()
    for name in PACKAGES:
        assert set(providers.get(name, ["atac-agent"])) == {"atac-agent"}


def test_running_needs_no_torch():
    """Every module that `agent run` and `agent demo` import, in a process where torch is absent."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import agent.cli, agent.commands.run, agent.station.run, agent.demo, agent.report\n"
        "import agent.doctor, calibration.report, engine.backends.onnxruntime\n"
    )
    done = ran(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


def test_help_needs_no_network_runtime_or_picture_library():
    """`agent --help` answers at once: heavy packages wait for the command that needs them."""
    code = (
        "import sys; sys.argv = ['agent', '--help']\n"
        "import agent.cli\n"
        "try:\n    agent.cli.main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'cv2', 'numpy', 'onnxruntime', 'paho', 'amqtt', 'torch', 'PIL'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = ran(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


def test_every_dependency_is_pinned():
    def name(requirement):
        word = "".join(c if c.isalnum() or c in "-_." else " " for c in requirement).split()[0]
        return word.lower().replace("_", "-")

    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    pinned = ("benchmarks", "demo", "train", "dev", "nvcc", "rtx")
    wanted = {*project["dependencies"], *(name for extra in pinned for name in extras[extra])}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {name(line) for line in lines if line and not line.startswith("#")}
    assert {name(requirement) for requirement in wanted} <= pins
    assert all("==" in line and "+" not in line for line in lines if not line.startswith("#"))


def test_the_readme_table_names_every_command_and_no_other():
    rows = [
        line.split("`")[1].split()
        for line in (ROOT / "README.md").read_text().splitlines()
        if line.startswith("| `agent ")
    ]
    assert [row[1] for row in rows] == list(COMMANDS)


def test_the_readme_and_the_makefile_agree():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in ("demo", "install", "test", "check"):
        assert f"make {target}" in readme
        assert f"\n{target}:" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_links_in_documents_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in page.read_text().split("](")[1:]:
            link = target.partition(")")[0].partition("#")[0]
            if link and "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_decisions_are_numbered_without_gaps():
    decisions = sorted(path.name for path in (ROOT / "docs" / "adr").glob("*.md"))
    assert [int(name[:4]) for name in decisions] == list(range(1, len(decisions) + 1))


def test_the_shipped_configuration_parses():
    assert load_config(ROOT / "agent.yaml").agent.id


def test_the_demo_bundle_is_what_its_script_would_train():
    """A change of the recipe line must not silently change what `make demo-bundle` makes."""
    code = (
        "import pathlib, demo_bundle\n"
        "from train.recipes import RECIPE_JSON\n"
        "shipped = pathlib.Path('agent/demo_bundle/recipe.json').read_bytes()\n"
        "assert demo_bundle.SETTINGS.settled(None) == RECIPE_JSON.validate_json(shipped)\n"
    )
    done = ran(sys.executable, "-c", f"import sys; sys.path[:0] = ['.', 'tools']\n{code}")
    assert done.returncode == 0, done.stderr


OLD_WORDS = {
    "trunks?": "backbone",
    "(unit_)?cells?": "patch",
    "lanes?": "worker",
    "handovers?": "bounded queue",
    "let(ting|s)?[ _]go": "discarded",
    "paint(s|ed|ing)?": "synthetic defect",
    "pseudo[-_ ]?(defect|anomal)(s|y|ies)?": "synthetic defect",
    "rivals?": "baseline",
    "troubles?": "fault",
    "anew": "again",
    "so many": "a number",
    "more and more rarely": "with exponential back-off",
    "in hand": "being inspected",
    "by heart": "overfit",
    "aloud": "with an alarm",
}
"""Words that this product once used, and what docs/glossary.md says instead."""

RIGHT_HERE = {
    ("docs/training.md", "paint"),  # a paint program
    ("docs/quality.md", "cells"),  # rows of the table of options have kept their names
    ("docs/quality.md", "cell"),
}
"""Where such a word means something else."""


def test_old_words_do_not_come_back():
    documents = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md"]
    texts = [*documents, *(ROOT / "docs").rglob("*.md"), ROOT / "agent.yaml"]
    texts += [path for name in (*PACKAGES, "examples") for path in (ROOT / name).rglob("*.*")]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]} (write: {better})"
        for path in texts
        if path.suffix in {".py", ".md", ".yaml", ".j2", ".json", ".cu", ".h"}
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        for old, better in OLD_WORDS.items()
        if (match := re.search(rf"(?<![a-zA-Z])({old})(?![a-zA-Z])", line, re.IGNORECASE))
        and (path.relative_to(ROOT).as_posix(), match[0]) not in RIGHT_HERE
    ]
    assert not found, "\n".join(found)
