"""What the agent's process settles for itself before the first frame."""

import ctypes
from contextlib import suppress
from typing import Final

import cv2

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_LARGEST: Final = 32 << 20
"""In bytes; glibc takes no more. Larger blocks, frames of 11 megapixels in colour, are mapped."""
_KEPT: Final = 64 << 20


def prepare_process() -> None:
    """Keep freed memory for the next frame, and OpenCV to the thread that calls it.

    By default glibc gives frame-sized blocks back to the kernel and asks for them again: at 512²
    drawing a thumbnail took three times as long for the page faults. It also gives each thread an
    arena of its own, where what one frees is kept from the others: over a hundred faults of a
    camera the agent grew from 182 to 196 MB; with one arena it kept to 158. OpenCV's own threads
    spin while they wait, on the cores that the network is using.
    """
    cv2.setNumThreads(1)
    with suppress(AttributeError):  # another C library than glibc
        settle = ctypes.CDLL(None).mallopt
        settle(_M_ARENA_MAX, 1)
        settle(_M_TRIM_THRESHOLD, _KEPT)
        settle(_M_MMAP_THRESHOLD, _LARGEST)
