"""Users, sessions and roles; their clock is the machine's, and tries are limited."""

import subprocess
import sys

import pytest

from agent.services.page.access import Access, Refused, Role

PASSWORD = "a long password"


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def access(tmp_path, clock):
    with Access(tmp_path / "users.sqlite", idle_s=60, now=clock) as opened:
        opened.add_user("ada", PASSWORD, Role.ENGINEER)
        yield opened


def test_who_does_nothing_may_only_look_and_is_logged_out_after_a_shift(access, clock):
    token = access.log_in("ada", PASSWORD, "here")
    assert access.visitor(token, is_active=True).may(Role.ENGINEER)
    clock.now += 59
    assert access.visitor(token, is_active=False).may(Role.ENGINEER)
    assert access.visitor(token, is_active=True).may(Role.ENGINEER)
    clock.now += 59
    assert access.visitor(token, is_active=False).may(Role.ENGINEER)
    clock.now += 2
    idle = access.visitor(token, is_active=True)
    assert (idle.role, idle.full_role, idle.is_idle) == (Role.VIEWER, Role.ENGINEER, True)
    clock.now += 12 * 3600
    assert access.visitor(token, is_active=True) is None


def test_a_session_outlives_the_page_but_not_the_machine_or_the_user(access, tmp_path, clock):
    token = access.log_in("ada", PASSWORD, "here")
    with Access(tmp_path / "users.sqlite", idle_s=60, now=clock) as again:
        assert again.visitor(token, is_active=True).name == "ada"
        again._boot = "another start of the machine"
        assert again.visitor(token, is_active=True) is None
    access.add_user("ada", "another long password", Role.VIEWER)
    assert access.visitor(token, is_active=True) is None
    assert token.encode() not in (tmp_path / "users.sqlite").read_bytes()


def test_ten_thousand_logins_cost_a_few_hashes(access, clock, monkeypatch):
    tried = []
    monkeypatch.setattr(access, "_is_right", lambda name, _password: tried.append(name))
    for number in range(10_000):
        clock.now += 0.001
        with pytest.raises(Refused):
            access.log_in(f"user {number}", "guess", f"10.0.0.{number % 256}")
    assert len(tried) <= 60 + 10  # a burst, and what the ten seconds allow
    assert len(access._tries) <= 10_000


def test_one_name_has_five_tries_a_minute(access, clock):
    for _ in range(5):
        with pytest.raises(Refused, match=r"login\.wrong"):
            access.log_in("ada", "guess", "here")
    with pytest.raises(Refused, match=r"login\.too_many"):
        access.log_in("ada", PASSWORD, "there")
    clock.now += 13
    assert access.log_in("ada", PASSWORD, "there")


@pytest.mark.parametrize(("name", "password"), [("", PASSWORD), ("a\nb", PASSWORD), ("a", "short")])
def test_what_is_no_user(access, name, password):
    with pytest.raises(ValueError, match="has"):
        access.add_user(name, password, Role.ADMIN)


def test_the_command_adds_and_removes_users(tmp_path):
    (tmp_path / "agent.yaml").write_text(
        "agent: {id: a}\nbundle: {path: b}\ncamera: {type: conveyor}\nmqtt: {host: h}\npage: {}\n"
    )

    def ran(*arguments, typed=""):
        code = "from agent.cli import main; main()"
        command = [sys.executable, "-c", code, "page", *arguments, "--config", "agent.yaml"]
        return subprocess.run(
            command, cwd=tmp_path, input=typed, capture_output=True, text=True, check=False
        )

    assert ran("add-user", "ada", "--role", "admin", typed=f"{PASSWORD}\n").returncode == 0
    assert ran("users").stdout == "ada  admin\n"
    short = ran("add-user", "bob", typed="short\n")
    assert (short.returncode, short.stderr.count("\n")) == (2, 1)
    assert ran("remove-user", "ada").returncode == 0
    assert ran("remove-user", "ada").returncode == 2
    assert (tmp_path / "page" / "users.sqlite").stat().st_mode & 0o777 == 0o600
