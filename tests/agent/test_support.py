"""`agent support`: what helps is packed, and nothing that could be a password."""

import json
import zipfile

import pytest

from agent.commands.support import support
from agent.support import shown_configuration
from engine.errors import ConfigurationError


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("password: hunter2", "password: …"),
        ('  {host: x, "api_token": hunter2}', '  {host: x, "api_token": …'),
        ("password_file: /etc/atac/password", "password_file: /etc/atac/password"),
        ("password_variable: ATAC_PASSWORD", "password_variable: ATAC_PASSWORD"),
        ("path: rtsp://me:hunter2@camera/1", "path: rtsp://…@camera/1"),
        ("# Secret: hunter2", "# Secret: …"),
        ("deadline_ms: 250", "deadline_ms: 250"),
        ("password:", "password:"),
    ],
)
def test_what_could_be_a_password_is_left_out(tmp_path, written, shown):
    path = tmp_path / "agent.yaml"
    path.write_text(f"{written}\n")
    (line,) = shown_configuration(path)
    assert "hunter2" not in line
    assert line.startswith(shown.split("…")[0])


def test_the_archive_has_what_helps(tmp_path, capsys):
    (tmp_path / "agent.yaml").write_text("agent: {id: x}\npassword: hunter2\n")
    out = tmp_path / "support.zip"
    support(config=tmp_path / "agent.yaml", out=out, is_running=True, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"archive": str(out)}
    with zipfile.ZipFile(out) as packed:
        assert {*packed.namelist()} == {"versions.txt", "doctor.json", "agent.yaml"}
        assert "hunter2" not in "".join(packed.read(name).decode() for name in packed.namelist())
        assert "numpy" in packed.read("versions.txt").decode()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        support(config=tmp_path / "agent.yaml", out=tmp_path / "no" / "support.zip")
