"""A disk whose power can be cut: what was not flushed is there in part, or not at all.

    ext4 ── loop device ── one file of a small FUSE file system, served by a thread here

A write is in the drive's cache until the kernel asks for a flush (FSYNC of the file). A cut keeps
everything up to the last flush and of the rest whatever chance wants, in blocks of 4 KiB: so do
drives that lose power. A snapshot of a frozen file system would show less, since freezing writes
everything that is dirty. Needs root, `/dev/fuse` and a loop device.
"""

import ctypes
import errno
import os
import random
import struct
import subprocess
import threading
import time
from enum import IntEnum
from pathlib import Path

_BLOCK = 4096
_HEADER = struct.Struct("<IIQQIIII")
_ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")
_ROOT, _FILE = 1, 2
_NAME = b"disk"
_DIRECT_IO = 1
"""Nothing of the file stays in the page cache: each write of the loop device comes here."""


class _Ask(IntEnum):
    """What the kernel asks of a FUSE file system."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    ACCESS = 34
    DESTROY = 38
    BATCH_FORGET = 42


class PowerCutDisk:
    """An ext4 of `size` bytes, mounted on `folder`; a context manager."""

    def __init__(self, place: Path, size: int) -> None:
        self.folder = place / "disk"
        self._host = place / "fuse"
        self._place = place
        self._flushed = bytearray(size)
        self._current = bytearray(size)
        self._unflushed: list[tuple[int, bytes]] = []
        self._lock = threading.Lock()
        self.flushes = 0

    def __enter__(self):
        self.folder.mkdir()
        self._host.mkdir()
        image = self._place / "empty"
        with image.open("wb") as file:
            file.truncate(len(self._current))
        subprocess.run(
            ["mkfs.ext4", "-q", "-F", "-b", str(_BLOCK), "-J", "size=4", image], check=True
        )
        self._current[:] = self._flushed[:] = image.read_bytes()
        image.unlink()
        self._device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0"
        libc = ctypes.CDLL(None, use_errno=True)
        arguments = (b"cut", bytes(self._host), b"fuse", 0, options.encode())
        if libc.mount(*arguments):
            os.close(self._device)
            raise OSError(ctypes.get_errno(), "mounting a FUSE file system")
        self._thread = threading.Thread(target=self._serve, name="power-cut-disk")
        self._thread.start()
        mount(self._host / _NAME.decode(), self.folder)
        return self

    def __exit__(self, *_error):
        unmount(self.folder)
        unmount(self._host)
        self._thread.join()
        os.close(self._device)

    def cut(self, image: Path, rng: random.Random) -> int:
        """Write what a power cut would leave now as `image`; the disk itself goes on.

        Returns how many blocks had not been flushed.
        """
        with self._lock:
            left = bytearray(self._flushed)
            unflushed = list(self._unflushed)
        kept = rng.choice((0.0, 0.5, 1.0))
        blocks = 0
        for offset, data in unflushed:
            for start in range(0, len(data), _BLOCK):
                piece = data[start : start + _BLOCK]
                blocks += 1
                if rng.random() < kept:
                    left[offset + start : offset + start + len(piece)] = piece
        image.write_bytes(left)
        return blocks

    # ---- the FUSE file system: a root with one file; everything below runs in the thread

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, 1 << 21)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                if error.errno in {errno.EINTR, errno.ENOENT}:
                    continue
                raise
            _, operation, unique, node, *_ = _HEADER.unpack_from(request)
            body = memoryview(request)[_HEADER.size :]
            if operation in {_Ask.FORGET, _Ask.BATCH_FORGET}:
                continue
            answer = self._answer(operation, node, body)
            code, content = (answer, b"") if isinstance(answer, int) else (0, answer)
            reply = struct.pack("<IiQ", 16 + len(content), -code, unique) + content
            os.write(self._device, reply)

    def _answer(self, operation: int, node: int, body: memoryview) -> bytes | int:
        """The content of a reply, or an error's number."""
        match operation:
            case _Ask.INIT:
                return self._init(body)
            case _Ask.LOOKUP:
                if bytes(body).rstrip(b"\0") != _NAME:
                    return errno.ENOENT
                return struct.pack("<QQQQII", _FILE, 0, 3600, 3600, 0, 0) + self._about(_FILE)
            case _Ask.GETATTR | _Ask.SETATTR:
                return struct.pack("<QII", 3600, 0, 0) + self._about(node)
            case _Ask.OPEN:
                return struct.pack("<QII", 1, _DIRECT_IO, 0)
            case _Ask.READ:
                _, offset, size = struct.unpack_from("<QQI", body)
                with self._lock:
                    return bytes(self._current[offset : offset + size])
            case _Ask.WRITE:
                return self._write(body)
            case _Ask.FSYNC:
                self._flush()
                return b""
            case _Ask.STATFS:
                blocks = len(self._current) // _BLOCK
                return struct.pack("<QQQQQIIII24x", blocks, 0, 0, 2, 0, _BLOCK, 255, _BLOCK, 0)
            case _Ask.RELEASE | _Ask.FLUSH | _Ask.ACCESS | _Ask.DESTROY:
                return b""
            case _:
                return errno.ENOSYS

    def _init(self, body: memoryview) -> bytes:
        _, _, readahead, _ = struct.unpack_from("<IIII", body)
        largest = 1 << 20
        pages = largest // _BLOCK
        return struct.pack(
            "<IIIIHHIIHHII24x", 7, 31, readahead, 0, 16, 12, largest, 1, pages, 0, 0, 0
        )

    def _about(self, node: int) -> bytes:
        mode, size = (0o40755, 0) if node == _ROOT else (0o100600, len(self._current))
        return _ATTRIBUTES.pack(
            node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, _BLOCK, 0
        )

    def _write(self, body: memoryview) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        data = bytes(body[40 : 40 + size])
        with self._lock:
            self._current[offset : offset + size] = data
            self._unflushed.append((offset, data))
        return struct.pack("<II", size, 0)

    def _flush(self) -> None:
        with self._lock:
            for offset, data in self._unflushed:
                self._flushed[offset : offset + len(data)] = data
            self._unflushed.clear()
            self.flushes += 1


def mount(image: Path, folder: Path) -> None:
    """Mount the ext4 in `image`; its journal is replayed."""
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)


def unmount(folder: Path) -> None:
    """Unmount; the loop device on top of it may need a moment to go."""
    until = time.monotonic() + 10
    while subprocess.run(["umount", folder], check=False, stderr=subprocess.DEVNULL).returncode:
        assert time.monotonic() < until, f"{folder} is busy"
        time.sleep(0.05)


def why_not() -> str | None:
    """Why no power can be cut here; `None` where it can."""
    if os.geteuid():
        return "mounting needs root"
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse"
    if not Path("/dev/loop-control").exists():
        return "there are no loop devices"
    return None
