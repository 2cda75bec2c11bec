"""Files that strangers may have put there: regular ones only, and no more of them than expected.

A named pipe would be waited for, a device never ends, and the size that a file says it has need not
be what comes out of it.
"""

import hashlib
import os
import stat
from errno import EFBIG, EINVAL
from pathlib import Path
from typing import BinaryIO, Final

_CHUNK: Final = 1 << 20


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; raises `OSError`, also for anything else."""
    # Without waiting: opening a pipe that nobody writes to would never return.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(file).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(file, "rb")
    os.close(file)
    found = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
    raise OSError(EINVAL, f"it is {found}", str(path))


def read_regular(path: Path, *, limit: int) -> bytes:
    """All of a regular file; raises `OSError`, also for one of more than `limit` bytes."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise _too_large(path, limit)
    return data


def file_sha256(path: Path, *, limit: int) -> str:
    """The SHA-256 of a regular file, in hexadecimal, a piece at a time; errors as above."""
    digest = hashlib.sha256()
    left = limit
    with open_regular(path) as file:
        while piece := file.read(_CHUNK):
            left -= len(piece)
            if left < 0:
                raise _too_large(path, limit)
            digest.update(piece)
    return digest.hexdigest()


def _too_large(path: Path, limit: int) -> OSError:
    return OSError(EFBIG, f"it is larger than {limit} bytes", str(path))
