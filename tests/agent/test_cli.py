"""The command line: help, errors as one line, exit codes."""

import errno
import inspect
import os
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image

from agent import cli
from engine.errors import BundleError, ConfigurationError, NoBundleError


@pytest.fixture
def called(monkeypatch, capsys):
    """Run `agent` with these arguments; gives exit code, output and error output."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["agent", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        code = end.value.code
        return code if isinstance(code, int) else 0, printed.out, printed.err

    return call


def test_help_lists_every_command(called):
    code, out, _ = called("--help")
    assert code == 0
    for name in cli.COMMANDS:
        assert name in out


def functions():
    """Each command's function; `agent fleet` has commands of its own."""
    for name in cli.COMMANDS:
        found = cli._command(name)
        if isinstance(found, typer.Typer):
            for one in found.registered_commands:
                yield pytest.param(f"{name} {one.name}", one.callback, id=f"{name} {one.name}")
        else:
            yield pytest.param(name, found, id=name)


@pytest.mark.parametrize(("name", "function"), list(functions()))
def test_every_command_explains_itself_with_an_example_and_speaks_json(called, name, function):
    code, out, _ = called(*name.split(), "--help")
    assert code == 0
    assert f"Example: agent {name}" in " ".join(out.split())
    assert "--json" in out
    signature = inspect.signature(function)
    assert all(p.kind is p.KEYWORD_ONLY for p in signature.parameters.values())


def test_an_unknown_command_is_wrong_use(called):
    code, _, err = called("inspect")
    assert code == 2
    assert "inspect" in err
    assert err.count("\n") == 1


def test_a_wrong_option_value_is_wrong_use(called):
    code, _, err = called("demo", "--parts", "0")
    assert code == 2
    assert "--parts" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("camera.type", "tv", "write folder"), 2),
        (BundleError("bottle", "is damaged"), 1),
        (NoBundleError("bottle"), 2),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(called, monkeypatch, error, code):
    def failing() -> None:
        raise error

    monkeypatch.setattr(cli, "_command", lambda _name: failing)
    found, out, err = called("doctor")
    assert found == code
    assert out == ""
    assert err.startswith("agent: ")
    assert err.count("\n") == 1
    assert str(error) in err


@pytest.mark.parametrize(
    "arguments",
    [
        "bench --bundle nowhere",
        "build --bundle nowhere",
        "calibrate --bundle nowhere --good {folder}",
        "evaluate --bundle nowhere --data {folder}",
        "export --bundle nowhere --precision fp16 --data {folder}",
        "sign --bundle nowhere --key {folder}/key.pem",
        "verify --bundle nowhere --key {folder}/key.pem",
        "run --config {folder}/agent.yaml",
    ],
)
def test_a_bundle_that_is_not_there_is_wrong_use_and_said_first(called, tmp_path, arguments):
    text = "agent: {id: a}\nbundle: {path: nowhere}\ncamera: {type: conveyor}\nmqtt: {host: a}\n"
    (tmp_path / "agent.yaml").write_text(text)
    Image.new("L", (64, 64)).save(tmp_path / "good.png")
    code, out, err = called(*arguments.format(folder=tmp_path).split())
    assert (code, out) == (2, "")
    assert "nowhere: there is no bundle here" in err


def test_ctrl_c_is_no_traceback(called, monkeypatch):
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_command", lambda _name: stopped)
    code, out, err = called("doctor")
    assert code == 130
    assert out == ""
    assert err == "agent: stopped\n"


def test_without_arguments_there_is_help(called):
    code, out, err = called()
    assert code == 0
    assert "Commands" in out
    assert err == ""


def test_run_with_a_wrong_option_leaves_no_child(called):
    code, _, err = called("run", "--tv")
    assert code == 2
    assert "--tv" in err
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children]
    assert not [command for command in commands if b"agent.inference" in command]


def test_a_disk_that_fails_is_one_line(called, monkeypatch):
    def fails(_child):
        raise OSError(errno.ENOSPC, "No space left on device", "bundle/network.onnx")

    monkeypatch.setattr(cli, "_invoke", fails)
    code, _, err = called("export")
    assert code == 1
    assert err == "agent: [Errno 28] No space left on device: 'bundle/network.onnx'\n"
