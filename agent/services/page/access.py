"""Who may do what on the page: users, sessions and roles in `users.sqlite`.

A session is a random value in a cookie; the file has its hash, so that a copy of the file opens
nothing. Ages of sessions count by the time since the machine started, which nobody sets.
"""

import hashlib
import secrets
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, Self

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

USERS: Final = "users.sqlite"
COOKIE: Final = "__Host-atac"
LEAST_LETTERS: Final = 10
_LASTS_S: Final = 12 * 3600.0
"""A session ends after a long shift, whatever its user does."""
_NOTED_S: Final = 5.0
_TRIES: Final = 5
_ALL_TRIES: Final = 60
_TRIES_S: Final = 60.0
_TRACKED: Final = 10_000
_NAME_MAX: Final = 64
_PASSWORD_MAX: Final = 1024
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class Role(IntEnum):
    """What somebody may do; each may do what those before it may."""

    VIEWER = 0
    OPERATOR = 1
    ENGINEER = 2
    ADMIN = 3

    @classmethod
    def named(cls, name: str) -> "Role | None":
        """The role of this name."""
        return cls.__members__.get(name.upper())


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Who asks: `role` is what they may do now, `full_role` what they may do when not idle."""

    name: str = ""
    role: Role | None = None
    full_role: Role | None = None

    @property
    def is_idle(self) -> bool:
        """Whether they may do less because they have done nothing for a while."""
        return self.role != self.full_role

    def may(self, role: Role) -> bool:
        """Whether they may do what this role may."""
        return self.role is not None and self.role >= role


NOBODY: Final = Visitor()
ONLOOKER: Final = Visitor(role=Role.VIEWER, full_role=Role.VIEWER)
"""Somebody at the machine itself."""


class Refused(Exception):  # noqa: N818 - what happens to who asks
    """A login that fails; the key of the text that says why."""


class Access:
    """Users and sessions; thread-safe.

    Args:
        path: The file.
        idle_s: Who has done nothing for so long may only look.
        now: Seconds since the machine started.
    """

    def __init__(
        self,
        path: Path,
        *,
        idle_s: float,
        now: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._idle_s = idle_s
        self._now = now
        self._boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
        self._lock = threading.Lock()
        self._hashing = threading.Lock()
        # One try takes 54 ms and 19 MiB.
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
        self._nobodys = ""
        self._tries: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._file = _opened(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    # ---- users

    def has_users(self) -> bool:
        """Whether anybody can log in."""
        return bool(self._ask("SELECT 1 FROM users LIMIT 1"))

    def users(self) -> list[tuple[str, Role]]:
        """All users."""
        return [(name, Role(role)) for name, role in self._ask("SELECT name, role FROM users")]

    def add_user(self, name: str, password: str, role: Role) -> None:
        """Add a user, or give one another password and role; their sessions end."""
        if not name or len(name) > _NAME_MAX or not name.isprintable() or name != name.strip():
            raise ValueError("a name has 1 to 64 letters that can be printed")
        if not LEAST_LETTERS <= len(password) <= _PASSWORD_MAX:
            raise ValueError(f"a password has at least {LEAST_LETTERS} letters")
        hashed = self._hasher.hash(password)
        with self._lock, self._file:
            self._file.execute(
                "INSERT OR REPLACE INTO users (name, role, password) VALUES (?, ?, ?)",
                (name, int(role), hashed),
            )
            self._file.execute("DELETE FROM sessions WHERE name = ?", (name,))

    def remove_user(self, name: str) -> bool:
        """Remove a user and end their sessions; whether there was one."""
        with self._lock, self._file:
            self._file.execute("DELETE FROM sessions WHERE name = ?", (name,))
            return bool(self._file.execute("DELETE FROM users WHERE name = ?", (name,)).rowcount)

    # ---- sessions

    def log_in(self, name: str, password: str, address: str) -> str:
        """A new session for this user: the cookie's value.

        Args:
            name: The user.
            password: As it was typed.
            address: From where; tries are limited by name and by address.

        Raises:
            Refused: It is not their password, there is no such user, or there were too many tries.
        """
        keys = f"name {name[:_NAME_MAX]}", f"from {address}"
        if not all([*(self._may_try(key, _TRIES) for key in keys), self._may_try("", _ALL_TRIES)]):
            raise Refused("login.too_many")
        if not self._hashing.acquire(timeout=1.0):
            raise Refused("login.too_many")
        try:
            is_right = len(password) <= _PASSWORD_MAX and self._is_right(name, password)
        finally:
            self._hashing.release()
        if not is_right:
            raise Refused("login.wrong")
        with self._lock:  # only what failed counts
            for key in (*keys, ""):
                self._tries.pop(key, None)
        token, now = secrets.token_urlsafe(32), self._now()
        with self._lock, self._file:
            self._file.execute(
                "DELETE FROM sessions WHERE boot != ? OR made < ?", (self._boot, now - _LASTS_S)
            )
            self._file.execute(
                "INSERT INTO sessions (token, name, boot, made, seen) VALUES (?, ?, ?, ?, ?)",
                (_hashed(token), name, self._boot, now, now),
            )
        self.note(name, "log in", f"from {address}")
        return token

    def log_out(self, token: str) -> None:
        """End a session."""
        with self._lock, self._file:
            self._file.execute("DELETE FROM sessions WHERE token = ?", (_hashed(token),))

    def visitor(self, token: str, *, is_active: bool) -> Visitor | None:
        """Whose session this is, if it is one; `is_active`: they have just done something."""
        found = self._ask(
            "SELECT users.name, role, made, seen FROM sessions JOIN users USING (name)"
            " WHERE token = ? AND boot = ?",
            _hashed(token),
            self._boot,
        )
        if not found:
            return None
        (name, number, made, seen), now = found[0], self._now()
        if now - made > _LASTS_S:
            return None
        role = Role(number)
        if now - seen > self._idle_s:
            return Visitor(name=name, role=Role.VIEWER, full_role=role)
        if is_active and now - seen > min(_NOTED_S, self._idle_s / 4):
            with self._lock, self._file:
                self._file.execute(
                    "UPDATE sessions SET seen = ? WHERE token = ?", (now, _hashed(token))
                )
        return Visitor(name=name, role=role, full_role=role)

    # ---- what was done

    def note(self, who: str, what: str, why: str = "") -> None:
        """Keep who has done what, and why."""
        with self._lock, self._file:
            self._file.execute(
                "INSERT INTO log (time_ns, who, what, why) VALUES (?, ?, ?, ?)",
                (time.time_ns(), who, what, why),
            )

    def log(self, limit: int = 200) -> list[tuple[int, str, str, str]]:
        """The newest of what was done: time, who, what, why."""
        return self._ask("SELECT time_ns, who, what, why FROM log ORDER BY id DESC LIMIT ?", limit)

    def _ask(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._file.execute(sql, values).fetchall()

    def _is_right(self, name: str, password: str) -> bool:
        found = self._ask("SELECT password FROM users WHERE name = ?", name)
        # A name that nobody has takes as long as one that somebody has.
        self._nobodys = self._nobodys or self._hasher.hash(secrets.token_hex())
        try:
            return self._hasher.verify(found[0][0] if found else self._nobodys, password)
        except (Argon2Error, InvalidHashError):
            return False

    def _may_try(self, key: str, tries: int) -> bool:
        """Whether this name or address, or all together, has had fewer than `tries` a minute."""
        with self._lock:
            left, at = self._tries.pop(key, (float(tries), self._now()))
            left = min(float(tries), left + (self._now() - at) * tries / _TRIES_S)
            self._tries[key] = max(0.0, left - 1), self._now()
            while len(self._tries) > _TRACKED:
                self._tries.popitem(last=False)
            return left >= 1


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def _opened(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    path.touch(0o600)
    connection = sqlite3.connect(path, check_same_thread=False, timeout=5.0)
    with closing(connection.cursor()) as cursor:
        cursor.executescript(
            "PRAGMA journal_mode = WAL;"
            "CREATE TABLE IF NOT EXISTS users ("
            " name TEXT PRIMARY KEY, role INTEGER NOT NULL, password TEXT NOT NULL);"
            "CREATE TABLE IF NOT EXISTS sessions (token TEXT PRIMARY KEY, name TEXT NOT NULL,"
            " boot TEXT NOT NULL, made REAL NOT NULL, seen REAL NOT NULL);"
            "CREATE TABLE IF NOT EXISTS log (id INTEGER PRIMARY KEY, time_ns INTEGER NOT NULL,"
            " who TEXT NOT NULL, what TEXT NOT NULL, why TEXT NOT NULL);"
        )
    return connection
