"""What the agent has made from a signed bundle and keeps in a cache: sealed, so that it is its own.

    content, a line feed, HMAC-SHA256 of what it is for and of the content

The key is `seal.key` in the folder of the cache, readable by its owner alone. Compiled networks are
programs: who can put a file there, but is neither that user nor root, must not choose what runs.
Where there is no key to be trusted a new one is made, and what an older one has sealed is not used.
"""

import hmac
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

KEY: Final = "seal.key"
_KEY_BYTES: Final = 32
_TAG_BYTES: Final = 64


def sealed(folder: Path, content: bytes, *, purpose: str) -> bytes:
    """`content` and its seal by the key of `folder`; raises `OSError` where none can be kept."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = _key(folder) or _new_key(folder)
    return content + b"\n" + _tag(key, content, purpose)


def unsealed(folder: Path, data: bytes, *, purpose: str) -> bytes | None:
    """The content, if this user has sealed it for this purpose; `None`: it must not be used."""
    key = _key(folder)
    content, tag = data[: -_TAG_BYTES - 1], data[-_TAG_BYTES:]
    if key is None or not hmac.compare_digest(tag, _tag(key, content, purpose)):
        return None
    return content


def _tag(key: bytes, content: bytes, purpose: str) -> bytes:
    code = hmac.new(key, f"{purpose}\n".encode(), "sha256")
    code.update(content)
    return code.hexdigest().encode()


def _key(folder: Path) -> bytes | None:
    """The key, if nobody else can have read or written it."""
    try:
        file = os.open(folder / KEY, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(file, "rb") as opened:
        status = os.fstat(file)
        if (
            not stat.S_ISREG(status.st_mode)
            or status.st_uid != os.geteuid()
            or status.st_mode & 0o077
            or status.st_size != _KEY_BYTES
        ):
            return None
        return opened.read(_KEY_BYTES)


def _new_key(folder: Path) -> bytes:
    path, partial = folder / KEY, folder / f"{KEY}.{secrets.token_hex(8)}"
    file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(file, "wb") as opened:
            opened.write(secrets.token_bytes(_KEY_BYTES))
            opened.flush()
            os.fsync(file)
        if os.path.lexists(path):  # one that cannot be trusted
            path.unlink()
        # Of two processes that start at once the first one's key counts.
        with suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink()
    key = _key(folder)
    if key is None:
        raise PermissionError(f"{path} is not this user's own")
    return key
