"""Who gets what from the page, and who does not."""

import socket
import ssl
from contextlib import suppress
from pathlib import Path

import pytest

from agent.services.page.access import Role
from agent.services.page.settings import PageSettings
from agent.settings import load_config
from engine.errors import ConfigurationError
from tests.agent.services.page.line import Line


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    with Line(tmp_path_factory.mktemp("line")) as running:
        yield running


def test_somebody_at_the_machine_may_look(line):
    shown = line.get("/line")
    assert shown.status == 200
    assert "script-src 'self'" in shown.headers["content-security-policy"]


def test_by_another_name_or_through_a_proxy_one_has_to_log_in(line):
    for headers in ({"Host": "page.plant"}, {"X-Forwarded-For": "10.1.2.3"}):
        away = line.get("/line", headers=headers)
        assert (away.status, away.headers["location"]) == (303, "/login?next=/line")
        assert line.get("/picture/tile/0123456789ab/1.jpg", headers=headers).status == 303
        assert line.get("/events", headers={**headers, "HX-Request": "true"}).status == 401


def test_who_logs_in_gets_a_cookie_that_no_script_reads(line):
    answer = line.post("/login", {"name": "operator", "password": "wrong password"})
    assert answer.status == 401
    cookie = line.post("/login", {"name": "operator", "password": "a long password"}).headers[
        "set-cookie"
    ]
    words = {word.strip().lower() for word in cookie.split(";")[1:]}
    assert cookie.startswith("__Host-atac=")
    assert {"secure", "httponly", "samesite=strict", "path=/"} <= words


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
)
def test_another_sites_page_may_not_ask(line, headers):
    cookie = line.log_in(Role.ADMIN)
    assert line.post("/logout", cookie=cookie, headers=headers).status == 403
    without = line.ask("POST", "/logout", headers={"Origin": line.url}, cookie=cookie)
    assert without.status == 403
    assert line.get("/line", cookie=cookie).text.count("administrator") == 1


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/picture/tile/../../users.sqlite/1.jpg", 404),
        ("/picture/tile/%2e%2e%2fusers/1.jpg", 404),
        ("/picture/tile/0123456789ab/-1.jpg", 404),
        ("/picture/tile/0123456789ab/99999999999999999999.jpg", 404),
        ("/picture/frame/0123456789ab/1.jpg", 404),
        ("/static/../page.py", 404),
        ("/static/%2e%2e/page.py", 404),
    ],
)
def test_no_path_comes_from_outside(line, path, status):
    assert line.get(path).status == status


def test_a_body_has_64_kilobytes_at_most(line):
    assert line.post("/login", {"name": "n" * 70_000}).status == 413
    headers = {"Origin": line.url, "HX-Request": "true"}
    chunked = line.ask("POST", "/login", body=iter([b"x" * 40_000] * 2), headers=headers)
    assert chunked.status == 413
    assert line.ask("PUT", "/login").status == 405


def test_a_head_without_an_end_is_not_read_for_ever(line):
    with socket.create_connection(line.page.address, timeout=60) as connection:
        connection.sendall(b"GET /line HTTP/1.1\r\n")
        with suppress(OSError):
            for number in range(100):
                connection.sendall(b"x-%d: " % number + b"y" * 8_000 + b"\r\n")
        with suppress(ConnectionResetError):
            assert connection.recv(1) == b""


def test_encrypted_and_before_there_are_users_one_may_look_and_change_nothing(certify, tmp_path):
    certificate = certify("localhost")
    files = {"certificate_file": certificate.certificate_file, "key_file": certificate.key_file}
    trusted = ssl.create_default_context(cafile=certificate.ca_file)
    with Line(tmp_path, users=False, settings=files, trusted=trusted) as line:
        assert line.get("/review").status == 200
        headers = {"Origin": f"https://localhost:{line.page.address[1]}"}
        said = {"say": f"{'e' * 12}/1=good"}
        refused = line.post("/review/label", said, headers=headers)
        assert (refused.status, "agent page add-user" in refused.text) == (403, True)
        assert line.get("/line", headers={"Host": "page.plant"}).status == 403


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"listen": "0.0.0.0:8080"}, "can be reached from other machines"),
        ({"listen": "nowhere"}, "should be an address and a port"),
        ({"listen": "127.0.0.1:99999"}, "should be an address and a port"),
        ({"key_file": Path("key")}, "need each other"),
        ({"shifts": ("6",)}, "should be a time"),
    ],
)
def test_settings_that_cannot_work(settings, why):
    with pytest.raises(ValueError, match=why):
        PageSettings(**settings)


def test_the_page_of_a_configuration_stands_beside_other_services(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text(
        "agent: {id: a}\nbundle: {path: b}\ncamera: {type: conveyor}\nmqtt: {host: h}\n"
        "services: [{type: metrics}]\npage:\n  listen: 127.0.0.1:8081\n"
    )
    assert [one.type for one in load_config(path).services] == ["metrics", "page"]
    path.write_text(path.read_text().replace("8081", "x"))
    with pytest.raises(ConfigurationError, match=r"page\.listen: .*line 7"):
        load_config(path)
