"""What a registry may do wrong, each time one line; and one that wants to know who asks."""

import base64
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from agent.fleet.oci import Registry, digest_of
from agent.fleet.settings import RegistrySettings
from engine.errors import ConfigurationError, RegistryError
from tests.ports import free_port
from tests.registry import RealRegistry

DIGEST = "sha256:" + "a" * 64
SECRET = "$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW"
"""bcrypt of `secret`."""


class Server:
    """A server on the loopback interface that answers as `answer` says; a context manager."""

    def __init__(self, answer):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                code, headers, body = answer(self.path, self.headers)
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/atac"

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def client(self, **options):
        settings = {name: options.pop(name) for name in ("user",) if name in options}
        if settings:
            settings["password_variable"] = "X"
        return Registry(RegistrySettings(address=self.address, **settings), wait_s=2, **options)


def refused(act):
    with pytest.raises(RegistryError) as error:
        act()
    assert "\n" not in str(error.value)
    return str(error.value)


HTML = {"Content-Type": "text/html"}
PAGE = b"<html><body>Welcome</body></html>"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, HTML, PAGE), "answers with text/html, and no manifest: is this a registry?"),
        ((404, HTML, PAGE), "answers as a web page does: is this a registry?"),
        ((500, HTML, PAGE), "answers 500 Internal Server Error"),
        ((403, {}, b""), "refuses access; check user, password"),
        ((401, {"WWW-Authenticate": "Basic realm=x"}, b""), "refuses access"),
        ((401, {"WWW-Authenticate": 'Bearer realm="http://else"'}, b""), "refuses access"),
    ],
)
def test_what_is_no_registry_or_refuses_is_one_line(answer, said):
    with Server(lambda *_: answer) as server:
        assert said in refused(lambda: server.client().head("stop", "current"))
        assert said in refused(lambda: server.client().pull("stop", "current"))


def test_answers_that_cannot_be_meant_are_refused(monkeypatch):
    kind = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
    with Server(lambda *_: (200, kind, b"[]")) as server:
        assert "is no manifest of ours" in refused(lambda: server.client().pull("x", "current"))
        said = refused(lambda: server.client().pull("x", DIGEST))
        assert "they were altered or damaged" in said
    with Server(lambda *_: (200, {}, b"x" * 1000)) as server:
        said = refused(lambda: server.client().blob("x", DIGEST, limit=999))
        assert "gives more than can be meant" in said
        assert "is no digest" in refused(lambda: server.client().blob("x", "../x", limit=9))
    with Server(lambda *_: (200, {"Content-Length": "9"}, b"x")) as server:
        said = refused(lambda: server.client().blob("x", DIGEST, limit=99))
        assert "ended in the middle" in said or "does not answer" in said


def test_a_registry_that_hangs_or_is_away_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/atac"
        client = Registry(RegistrySettings(address=address), wait_s=0.1)
        assert "does not answer within 0.1 s" in refused(lambda: client.head("x", "current"))
    client = Registry(RegistrySettings(address=f"http://127.0.0.1:{free_port()}/atac"))
    assert "cannot be reached (Connection refused)" in refused(lambda: client.head("x", "current"))
    client = Registry(RegistrySettings(address="https://127.0.0.1:1/atac"), wait_s=1)
    assert "cannot be reached" in refused(lambda: client.head("x", "current"))
    with Server(lambda *_: (200, HTML, PAGE)) as server:
        address = server.address.replace("http:", "https:")
        client = Registry(RegistrySettings(address=address), wait_s=2)
        assert "speaks no TLS" in refused(lambda: client.head("x", "current"))


def test_a_token_is_asked_for_with_the_password_and_given_to_nobody_else():
    heard = []

    def elsewhere(path, headers):
        heard.append(("elsewhere", headers["Authorization"]))
        return 200, {}, b"blob"

    def answer(path, headers):
        given = headers["Authorization"]
        if path.startswith("/token"):
            heard.append((path, given))
            return 200, {}, json.dumps({"token": "t0"}).encode()
        if given != "Bearer t0":
            challenge = f'Bearer realm="{where}/token",service="r",scope="repository:x:pull"'
            return 401, {"WWW-Authenticate": challenge}, b""
        return 307, {"Location": other.address}, b""

    with Server(elsewhere) as other, Server(answer) as server:
        where = server.address.removesuffix("/atac")
        client = server.client(user="ada", password="secret")
        assert client.blob("x", digest_of(b"blob"), limit=9) == b"blob"
    pair = base64.b64encode(b"ada:secret").decode()
    assert heard == [
        ("/token?service=r&scope=repository%3Ax%3Apull", f"Basic {pair}"),
        ("elsewhere", None),
    ]


def test_a_real_registry_with_a_password(tmp_path, monkeypatch):
    (tmp_path / "users").write_text(f"ada:{SECRET}\n")
    extra = f"auth: {{htpasswd: {{realm: atac, path: {tmp_path / 'users'}}}}}\n"
    with RealRegistry(tmp_path / "registry", extra=extra) as registry:
        assert "refuses access" in refused(lambda: registry.client().pull("x", "current"))
        address = registry.settings.address
        monkeypatch.setenv("WORD", "secret")
        settings = RegistrySettings(address=address, user="ada", password_variable="WORD")
        client = Registry.of(settings)
        client.push("x", "current", {"a": b"1", "b": b"2"}, kind="application/x")
        assert set(Registry.of(settings).pull("x", "current").layers) == {"a", "b"}
        monkeypatch.setenv("WORD", "guess")
        assert "refuses access" in refused(lambda: Registry.of(settings).pull("x", "current"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"address": "registry/atac"}, "should be the address of a registry"),
        ({"address": "https://ada:word@host/atac"}, "should be the address"),
        ({"address": "https://host"}, "should be the address"),
        ({"address": "http://host/atac", "user": "a", "password_variable": "X"}, "in clear"),
        ({"address": "https://host/atac", "user": "a"}, "need each other"),
    ],
)
def test_settings_that_cannot_work_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        RegistrySettings(**values)


def test_a_missing_authority_is_a_wrong_configuration(tmp_path):
    settings = RegistrySettings(address="https://host/atac", ca_file=tmp_path / "ca.pem")
    with pytest.raises(ConfigurationError, match=r"registry.ca_file: .*No such file"):
        Registry.of(settings)
