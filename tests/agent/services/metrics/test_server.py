"""Scrapes and health checks over HTTP, and peers that misbehave."""

import http.client
import socket
import ssl
import threading
from contextlib import ExitStack, suppress

import pytest

from agent.services import metrics
from agent.services.metrics import MetricsSettings, MetricsTls
from agent.services.metrics import server as module
from engine.errors import ConfigurationError
from tests.agent.statuses import Newest, status
from tests.ports import free_port


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def token_file(tmp_path):
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    file.chmod(0o600)
    return file


@pytest.fixture
def serve(port):
    """Serve a status with these settings until the test ends."""
    with ExitStack() as stack:
        yield lambda watched=None, **settings: stack.enter_context(
            metrics.open(MetricsSettings(port=port, **settings), watched or Newest(status()))
        )


@pytest.fixture
def get(port):
    def ask(path="/metrics", token=None, method="GET"):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body

    return ask


def sent(port, data):
    """All that comes back on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(data)
        with connection.makefile("rb") as answer:
            return answer.read()


def test_each_scrape_reads_the_newest_status(serve, get):
    watched = Newest(status(uptime_s=1.0))
    serve(watched)
    assert "atac_uptime_seconds 1.0" in get()[1]
    watched.latest = status(uptime_s=2.0)
    assert "atac_uptime_seconds 2.0" in get()[1]


def test_only_who_has_the_token_reads_metrics_and_it_may_change(serve, get, token_file):
    serve(address="0.0.0.0", token_file=token_file)
    assert [get(token=token)[0] for token in (None, "", "wrong", "s3cret")] == [401, 401, 401, 200]
    token_file.write_text("another")
    assert [get(token=token)[0] for token in ("s3cret", "another")] == [401, 200]
    assert 'atac_scrapes_total{outcome="refused"} 4.0' in get(token="another")[1]
    token_file.write_text("")
    assert [get(token=token)[0] for token in ("", "another")] == [401, 401]
    with pytest.raises(ConfigurationError, match=r"metrics\.token_file: .*is empty"):
        metrics.open(MetricsSettings(token_file=token_file), Newest(status()))
    token_file.unlink()
    assert get(token="another")[0] == 401
    assert get("/healthy") == (200, "ok\n")


def test_others_than_this_machine_need_a_token():
    for address in ("0.0.0.0", "::", "10.0.0.7", "line-3.example"):
        with pytest.raises(ConfigurationError, match=r"metrics.token_file: is missing where"):
            metrics.open(MetricsSettings(address=address), Newest(status()))
    for address in ("127.0.0.1", "localhost", "::1"):
        metrics.open(MetricsSettings(address=address), Newest(status()))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"token_file": "/none"}, "metrics.token_file: '/none': cannot be read"),
        ({"token_variable": "ATAC_NONE"}, "metrics.token_variable: 'ATAC_NONE': there is no such"),
        ({"token_file": "/a", "token_variable": "B"}, "give either token_file or token_variable"),
        ({"tls": {"certificate_file": "/none", "key_file": "/none"}}, "metrics.tls.certificate"),
    ],
)
def test_a_token_or_a_certificate_that_cannot_be_used_is_said_at_once(settings, said):
    with pytest.raises(ConfigurationError, match=said):
        metrics.open(MetricsSettings(**settings), Newest(status()))


def test_an_agent_that_hangs_is_not_healthy(serve, get):
    watched = Newest(status())
    serve(watched)
    assert get("/healthy")[0] == 200
    for hangs in ({"in_hand_s": 60.0}, {"ended_threads": ("ledger",)}):
        watched.latest = status(**hangs)
        assert get("/healthy") == (503, "no progress\n")


def test_the_connection_may_be_encrypted(serve, port, certify):
    certificate = certify("127.0.0.1")
    tls = MetricsTls(certificate_file=certificate.certificate_file, key_file=certificate.key_file)
    serve(tls=tls)
    trusted = ssl.create_default_context(cafile=certificate.ca_file)
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=trusted)
    connection.request("GET", "/metrics")
    assert connection.getresponse().status == 200
    connection.close()
    assert sent(port, b"GET /metrics HTTP/1.1\r\n\r\n")[:4] != b"HTTP"
    connection = http.client.HTTPSConnection(
        "127.0.0.1", port, timeout=60, context=ssl.create_default_context()
    )
    with pytest.raises(ssl.SSLCertVerificationError):
        connection.request("GET", "/metrics")
    connection.close()


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"HTTP/1.1 405 "),
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 "),
        (b"GET /metrics/../etc HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 "),
        (b"GET /metrics\r\n\r\n", b""),
        (b"\r\n\r\n", b""),
        (b"\x16\x03\x01" + bytes(range(256)) + b"\r\n\r\n", b""),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", b""),
    ],
)
def test_what_is_no_scrape_is_refused_and_counted(serve, port, get, request_, answer):
    serve()
    try:
        assert sent(port, request_)[: len(answer) or None].startswith(answer)
    except ConnectionResetError:
        assert not answer
    assert 'atac_scrapes_total{outcome="refused"} 1.0' in get()[1]


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_who_says_nothing_or_reads_nothing_is_left_after_a_while(
    serve, port, get, certify, monkeypatch, eventually, is_encrypted
):
    monkeypatch.setattr(module, "_PATIENCE_S", 1.0)
    mine = certify("127.0.0.1")
    tls = MetricsTls(certificate_file=mine.certificate_file, key_file=mine.key_file)
    service = serve(tls=tls if is_encrypted else None)
    with ExitStack() as stack:
        for start in (b"", b"GET /met", b"\x16\x03\x01\x02\x00\x01"):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            peer.sendall(start)
        assert is_encrypted or get()[0] == 200  # while they are there
        eventually(lambda: service._refused >= 3)


def test_a_thousand_connections_do_not_keep_others_out(serve, port, get, monkeypatch, eventually):
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)
    monkeypatch.setattr(module, "_PATIENCE_S", 1.0)
    service = serve()
    threads = threading.active_count()
    with ExitStack() as stack:
        for _ in range(1000):
            peer = stack.enter_context(socket.socket())
            peer.setblocking(False)
            peer.connect_ex(("127.0.0.1", port))
        eventually(lambda: service._refused > 50)
        assert threading.active_count() == threads

    def is_answered():
        with suppress(OSError):  # all places are still taken
            return get()[0] == 200

    eventually(is_answered)


def test_an_address_in_use_is_said_once_and_tried_again(port, get, monkeypatch, caplog, eventually):
    monkeypatch.setattr(module, "_RETRY_S", 0.02)
    settings = MetricsSettings(port=port)
    second = metrics.open(settings, Newest(status(uptime_s=7.0)))
    with ExitStack() as both:
        with metrics.open(settings, Newest(status())):
            both.enter_context(second)
            assert second.fault.startswith(f"metrics: cannot listen at 127.0.0.1:{port}: Address")
            assert "atac_uptime_seconds 60.0" in get()[1]
        eventually(lambda: second.fault is None)
        assert "atac_uptime_seconds 7.0" in get()[1]
    assert caplog.messages == [
        f"metrics: cannot listen at 127.0.0.1:{port}: Address already in use; retries"
    ]


def test_a_status_that_cannot_be_told_costs_that_scrape(serve, port, get, caplog, eventually):
    watched = Newest(status())
    service = serve(watched)
    watched.latest = None
    assert sent(port, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
    eventually(lambda: service._refused == 1)
    assert caplog.messages == ["metrics: an error that nobody expected"]
    watched.latest = status()
    assert get()[0] == 200
