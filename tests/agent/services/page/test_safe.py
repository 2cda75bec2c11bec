"""Safe mode: what is wrong with the configuration is on the page, and it is waited for."""

import http.client
import subprocess
import sys
import threading

import pytest

from agent.services.page.safe import loaded_or_shown
from agent.settings import load_config
from engine.errors import ConfigurationError
from tests.agent.services.page.line import until
from tests.ports import free_port

WELL = "agent: {{id: a}}\nbundle: {{path: b}}\ncamera: {{type: conveyor}}\nmqtt: {{host: h}}\n"
PAGE = "page:\n  # where\n  listen: 127.0.0.1:{port}\n"


def read(port, path="/line"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError:
        return 0, ""
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (PAGE + "lines: {{}}\n" + WELL, "lines: {}: unknown key; did you mean line?"),
        (WELL + PAGE + "ledger: [unclosed\n", "line 9"),
        ("mqtt: {{password: secret<b>}}\n" + PAGE, "passwords do not belong here"),
    ],
)
def test_the_page_shows_the_error_and_its_line_until_it_is_mended(tmp_path, broken, why):
    port, path, stop = free_port(), tmp_path / "agent.yaml", threading.Event()
    path.write_text(broken.format(port=port))
    loaded = []
    waiting = threading.Thread(
        target=lambda: loaded.append(loaded_or_shown(path, load_config, stop))
    )
    waiting.start()
    try:
        until(lambda: read(port)[0] == 503)
        _, html = read(port)
        assert why in html
        assert "line " in html
        assert "secret" not in html
        assert read(port, "/review")[0] == 503
        assert read(port, "/static/page.css")[0] == 200
        path.write_text((WELL + PAGE).format(port=port))
        waiting.join(180)
        assert loaded[0].agent.id == "a"
    finally:
        stop.set()
        waiting.join()


def test_without_a_page_the_error_is_raised_at_once(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text("lines: {}\n")
    with pytest.raises(ConfigurationError, match="unknown key"):
        loaded_or_shown(path, load_config, threading.Event())


def test_the_run_ends_with_the_error_when_it_is_stopped(tmp_path):
    port, path = free_port(), tmp_path / "agent.yaml"
    path.write_text((PAGE + "lines: {{}}\n").format(port=port))
    command = [sys.executable, "-m", "agent", "run", "--config", str(path)]
    command[1:3] = ["-c", "from agent.cli import main; main()"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        until(lambda: read(port)[0] == 503)
        run.terminate()
        _, told = run.communicate(timeout=180)
    assert run.returncode == 2
    assert "unknown key; did you mean line?" in told
    assert "Traceback" not in told
