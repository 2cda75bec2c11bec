"""What the process settles, seen from outside: page faults and OpenCV's threads."""

import platform
import subprocess
import sys

import pytest

LOOP = """
import resource, sys
import cv2, numpy as np
from agent.process import prepare_process
if sys.argv[1] == "prepared":
    prepare_process()
    assert cv2.getNumThreads() == 1
frame = np.zeros((1000, 2000, 3), np.uint8)
for _ in range(3):
    frame.copy()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    first, second = frame.copy(), frame.copy()
    del first, second
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

THREADS = """
import ctypes, sys, threading
from agent.process import prepare_process
if sys.argv[1] == "prepared":
    prepare_process()
together = threading.Barrier(4)
def work():
    together.wait()
    kept = [bytearray(5000) for _ in range(100)]
    together.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""

only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")


def output(program: str, how: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program, how], check=True, capture_output=True, text=True
    ).stdout


def faults(how: str) -> int:
    return int(output(LOOP, how))


@only_glibc
def test_what_one_thread_frees_serves_the_others():
    assert output(THREADS, "prepared").count("<heap nr=") == 1
    assert output(THREADS, "as it is").count("<heap nr=") > 1


@only_glibc
def test_the_memory_of_a_frame_is_there_for_the_next_one():
    assert faults("prepared") < 0.1 * faults("as it is")
