"""The one reader of the user's text files, and what no YAML of ours may hold."""

import os

import pytest

from agent.settings_file import read_text, read_yaml
from engine.errors import ConfigurationError


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "password"
    path.write_bytes(b"\xef\xbb\xbfs3cret\r\n")
    assert read_text(path, key="mqtt.password_file") == "s3cret\r\n"


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 100)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, said in [
        ("pipe", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("/dev/null", "not a regular file"),
        (".", "it is a folder"),
        ("large", "larger than 10 bytes"),
        ("binary", "not text in UTF-8"),
        ("nowhere", "there is no such file"),
        ("nowhere/below", "there is no such file"),
        ("large/below", "cannot be read"),
    ]:
        with pytest.raises(ConfigurationError, match=rf"mqtt\.password_file: .*{said}"):
            read_text(tmp_path / name, key="mqtt.password_file", max_bytes=10)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bundle: {path: !!set {a}}", "line 1: the tag tag:yaml.org,2002:set is not allowed"),
        ("a:\n  b: !!binary aGk=", "line 2: the tag tag:yaml.org,2002:binary is not allowed"),
        ("!!python/object:os.system {}", "is not allowed"),
        ("? !!binary aGk=\n: 1", "is not allowed"),
        ("a: {1: x}", "a.1: is no key"),
        ("a: {yes: x}", "a.True: is no key"),
        ('a: {"b\\n": x}', "is no key"),
        ('a: "\\ud800"', "cannot be printed"),
        ('a: {b: "x\\0"}', r"a\.b: 'x.*cannot be printed"),
        ("bundle: {require_signature: }", r"bundle\.require_signature: is blank"),
        ("mqtt: {tls: }", r"mqtt\.tls: is blank"),
        ("mqtt: {tls: ~}", r"mqtt\.tls: is blank"),
        ("cameras: [{line: null}]", r"cameras\.0\.line: is blank"),
    ],
)
def test_what_no_setting_can_mean_is_refused(tmp_path, text, said):
    (tmp_path / "agent.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        read_yaml(tmp_path / "agent.yaml")


def test_a_date_is_text_and_an_exponent_makes_a_number(tmp_path):
    (tmp_path / "agent.yaml").write_text("a: {id: 2024-01-01, s: 1e3, t: 5E-1, u: 1e, v: e3}")
    written = read_yaml(tmp_path / "agent.yaml")
    assert written.data["a"] == {"id": "2024-01-01", "s": 1000.0, "t": 0.5, "u": "1e", "v": "e3"}
