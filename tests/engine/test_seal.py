"""Seals: of this user, for one purpose, by a key that nobody else has had."""

import os

import pytest

from engine.seal import KEY, sealed, unsealed


@pytest.fixture
def data(tmp_path):
    return sealed(tmp_path, b"program", purpose="a")


def test_what_was_sealed_comes_back_for_its_purpose_alone(tmp_path, data):
    assert unsealed(tmp_path, data, purpose="a") == b"program"
    assert unsealed(tmp_path, data, purpose="b") is None
    assert unsealed(tmp_path / "elsewhere", data, purpose="a") is None


@pytest.mark.parametrize("length", [0, 1, 64, 65, 71])
def test_what_was_cut_or_changed_does_not(tmp_path, data, length):
    assert unsealed(tmp_path, data[:length], purpose="a") is None
    changed = data[:length] + bytes([data[length] ^ 1]) + data[length + 1 :]
    assert unsealed(tmp_path, changed, purpose="a") is None


def open_to_others(key):
    key.chmod(0o640)


def linked(key):
    key.rename(key.with_name("real"))
    key.symlink_to("real")


def a_pipe(key):
    key.unlink()
    os.mkfifo(key, 0o600)


def short(key):
    key.write_bytes(b"")


@pytest.mark.parametrize("change", [open_to_others, linked, a_pipe, short])
def test_a_key_that_others_may_have_had_is_replaced(tmp_path, data, change):
    change(tmp_path / KEY)
    assert unsealed(tmp_path, data, purpose="a") is None
    again = sealed(tmp_path, b"program", purpose="a")
    assert unsealed(tmp_path, again, purpose="a") == b"program"
    assert unsealed(tmp_path, data, purpose="a") is None
    assert (tmp_path / KEY).stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_key_of_another_user_is_replaced(tmp_path, data):
    os.chown(tmp_path / KEY, 1, 1)
    assert unsealed(tmp_path, data, purpose="a") is None
    assert unsealed(tmp_path, sealed(tmp_path, b"p", purpose="a"), purpose="a") == b"p"
