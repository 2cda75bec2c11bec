"""Inspection in a child process: the same answers, and what becomes of parts when it fails."""

import os
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from agent.inference.child import ChildInspector, Memory, Setup, _queued_ns
from agent.inference.start import StartingChild
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.errors import BackendError, InspectionError, NoAnswerError
from engine.image import demosaiced
from engine.methods import open_method
from tests.tiny_bundle import defective_part, good_part, tiny_bundle


def suspend(process):
    """Stop a process; the signal itself takes effect some time later."""
    os.kill(process, signal.SIGSTOP)
    while Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.001)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """On a busy machine a start may take long; no test is about how long."""
    monkeypatch.setattr("agent.inference.child._RESTART_S", 300.0)


@pytest.fixture
def child(bundle):
    with ChildInspector(Setup(bundle=bundle.path, bundle_id=bundle.id)) as inspector:
        yield inspector


def kill(child) -> None:
    """Kill the child process and wait until that is known."""
    os.kill(child.pid, signal.SIGKILL)
    while child._child.end() is None:
        time.sleep(0.01)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def pass_scores(found) -> list[float]:
    return [each.score for each in found.passes]


def test_a_child_answers_what_the_agent_itself_would(bundle, child):
    frames = [good_part(1), defective_part(2), defective_part(3, width=900, height=700)]
    frames += [frame[..., 0] for frame in frames]  # mono
    frames += [frames[2][10:600, ::2], frames[0]]  # not contiguous; small after large
    with OnnxRuntimeBackend(bundle) as backend:
        within = open_method(bundle.manifest.method, backend)
        for frame in frames:
            one, other = within.inspect(frame), child.inspect(frame)
            for name in ("score", "deviation", "box", "zoomed"):
                assert getattr(one, name) == getattr(other, name)
            np.testing.assert_array_equal(one.attention, other.attention)
            np.testing.assert_array_equal(one.score_map, other.score_map)
            assert pass_scores(one) == pass_scores(other)
            assert other.seconds > 0
    assert child.fault is None
    assert child.restarts == 0


def test_raw_colour_is_converted_for_a_network_that_wants_rgb(child):
    raw = defective_part(2)[..., 1]
    raw = np.ascontiguousarray(raw[: raw.shape[0] // 2 * 2, : raw.shape[1] // 2 * 2])
    assert not child.takes_bayer
    assert (
        child.inspect(raw, "bayer_gbrg").score == child.inspect(demosaiced(raw, "bayer_gbrg")).score
    )


def test_lanes_share_the_child_and_get_their_own_answers(bundle, child):
    assert child.workers == min(4, os.cpu_count())
    frames = [defective_part(number, width=100 + 10 * number) for number in range(12)]
    with OnnxRuntimeBackend(bundle) as backend:
        within = open_method(bundle.manifest.method, backend)
        expected = [pass_scores(within.inspect(frame)) for frame in frames]
    with ThreadPoolExecutor(child.workers + 1) as threads:  # one of them has to wait
        found = list(threads.map(lambda frame: pass_scores(child.inspect(frame)), frames))
    assert found == expected


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has one worker")
def test_of_two_parts_in_hand_a_dying_child_costs_one(child):
    suspend(child.pid)
    threading.Timer(0.3, child._child._process.kill).start()
    with ThreadPoolExecutor(2) as threads:
        parts = [threads.submit(child.inspect, good_part(number)) for number in range(2)]
    errors = [part.exception() for part in parts]
    assert sorted(map(type, errors), key=repr) == [type(None), BackendError]
    assert child.restarts == 1
    assert child.fault is None


def test_what_was_found_stays_as_it_is_when_the_next_frame_comes(child):
    found = child.inspect(defective_part(1))
    before = found.score_map.copy()
    child.inspect(good_part(2))
    np.testing.assert_array_equal(found.score_map, before)


def test_a_killed_child_is_replaced_and_costs_at_most_the_part_in_hand(child, eventually):
    child.inspect(good_part(1))
    pid = child.pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: child.fault == "was ended by SIGKILL")  # noticed without a part
    assert child.inspect(good_part(1)).score > 0
    assert child.pid != pid
    assert (child.restarts, child.fault) == (1, None)


def test_a_child_that_dies_with_a_part_in_hand_ends_it_as_error(child):
    suspend(child.pid)
    killer = child._child._process

    threading.Timer(0.2, killer.kill).start()
    with pytest.raises(BackendError, match="was ended by SIGKILL"):
        child.inspect(good_part(1))
    assert "restarted" in child.fault
    assert child.inspect(good_part(1)).score > 0


def test_a_child_that_hangs_is_killed_and_replaced(child):
    suspend(child.pid)
    with pytest.raises(NoAnswerError, match=r"did not answer within [\d.]+ s"):
        child.inspect(good_part(1))
    assert child.fault.endswith(" s; it was restarted")
    assert child.inspect(good_part(1)).score > 0
    assert child.fault is None


def test_a_part_waits_for_a_new_child_no_longer_than_its_deadline(bundle):
    with ChildInspector(Setup(bundle=bundle.path, bundle_id=bundle.id), deadline_s=0.05) as child:
        kill(child)
        with pytest.raises(NoAnswerError, match="is being restarted"):
            child.inspect(good_part(1))
        pid = child.pid
        until = time.monotonic() + 300
        while True:
            try:
                child.inspect(good_part(1))
                break
            except NoAnswerError:
                assert time.monotonic() < until
        assert child.pid == pid  # it was waited for, not started again and again


def test_restarts_leave_nothing_behind(child):
    def restart():
        kill(child)
        child.inspect(good_part(1))

    restart()
    before = open_files()
    for _ in range(3):
        restart()
    assert open_files() == before
    assert child.restarts == 4


def test_a_child_may_be_started_before_its_setup_is_known(bundle):
    before = open_files()
    with (
        StartingChild() as starting,
        ChildInspector(Setup(bundle=bundle.path, bundle_id=bundle.id), first=starting) as child,
    ):
        assert child.pid == starting.process.pid
        assert child.inspect(good_part(1)).score > 0
    assert open_files() == before


def test_a_child_that_gets_no_setup_ends():
    before = open_files()
    with StartingChild() as starting:
        pass
    assert starting.process.returncode == -signal.SIGKILL
    assert open_files() == before
    with StartingChild() as starting:
        starting.connections[0][0].shutdown(socket.SHUT_RDWR)  # as when the agent has died
        assert starting.process.wait(300) == 0


def test_a_child_that_cannot_start_stops_the_agent(tmp_path):
    before = open_files()
    with (
        pytest.raises(BackendError, match="no bundle here"),
        ChildInspector(Setup(bundle=tmp_path, bundle_id="0" * 64)),
    ):
        pass
    assert open_files() == before


def test_a_child_that_cannot_start_again_is_tried_with_back_off(bundle, tmp_path, caplog):
    moved = tiny_bundle(tmp_path / "bundle")
    with ChildInspector(Setup(bundle=moved.path, bundle_id=moved.id), deadline_s=2.0) as child:
        manifest = tmp_path / "bundle" / "manifest.json"
        text = manifest.read_bytes()
        manifest.unlink()
        kill(child)
        until = time.monotonic() + 300
        while "no bundle here" not in (child.fault or ""):
            with pytest.raises((BackendError, NoAnswerError)):
                child.inspect(good_part(1))
            assert time.monotonic() < until
        said = [record for record in caplog.records if "cannot start" in record.message]
        assert len(said) == 1
        manifest.write_bytes(text)
        until = time.monotonic() + 300
        while True:
            try:
                child.inspect(good_part(1))
                break
            except (BackendError, NoAnswerError):
                assert time.monotonic() < until
        assert child.fault is None


def test_a_child_that_comes_later_opens_what_the_agent_has_checked_and_nothing_else(
    tmp_path, caplog
):
    first = tiny_bundle(tmp_path / "bundle")
    # To the other bundle every part is good.
    other = tiny_bundle(tmp_path / "other", gain=1e-9)
    kept = shutil.copytree(first.path, tmp_path / "kept")
    defect = defective_part(1)
    with ChildInspector(Setup(bundle=first.path, bundle_id=first.id), deadline_s=2.0) as child:
        score = child.inspect(defect).score
        shutil.copytree(other.path, first.path, dirs_exist_ok=True)
        assert child.inspect(defect).score == score  # what was opened is what runs
        kill(child)
        until = time.monotonic() + 300
        while "holds another bundle than at the start" not in (child.fault or ""):
            with pytest.raises((BackendError, NoAnswerError)):
                child.inspect(defect)
            assert time.monotonic() < until
        assert f"{other.id[:12]}, not {first.id[:12]}" in caplog.text
        shutil.copytree(kept, first.path, dirs_exist_ok=True)
        while child.fault is not None:
            with suppress(BackendError, NoAnswerError):
                assert child.inspect(defect).score == score
            assert time.monotonic() < until


def test_children_that_die_before_a_part_gets_through_come_more_rarely(child, monkeypatch):
    waits = []
    monkeypatch.setattr("agent.inference.child.sleep", waits.append)
    child.inspect(good_part(1))
    kill(child)
    child._ready_child()  # at once; no part gets through
    assert not waits
    kill(child)
    with pytest.raises(BackendError, match="was ended by SIGKILL, repeatedly"):
        child.inspect(good_part(1))
    assert 0 < waits[-1] <= 0.25
    assert child.fault == "was ended by SIGKILL, repeatedly"
    monkeypatch.undo()
    assert child.inspect(good_part(1)).score > 0
    assert (child.fault, child.restarts) == (None, 2)


def test_an_inspection_that_fails_is_an_error_of_its_part_alone(child):
    pid = child.pid
    with pytest.raises(InspectionError):
        child.inspect(np.zeros((4, 4, 7), np.uint8))
    assert child.inspect(good_part(1)).score > 0
    assert (child.pid, child.restarts) == (pid, 0)


def test_a_child_leaves_ctrl_c_to_its_parent(child):
    child.inspect(good_part(1))
    os.kill(child.pid, signal.SIGINT)
    os.kill(child.pid, signal.SIGTERM)
    assert child.inspect(good_part(1)).score > 0
    assert child.restarts == 0


def test_a_child_that_gets_no_processor_is_not_taken_for_hung(child, monkeypatch):
    """As on a machine that is too busy: stopped for three limits, but ready to run all the time."""
    queued = iter(range(0, 10**12, 10**9))
    monkeypatch.setattr("agent.inference.child._queued_ns", lambda _pid: {"1": next(queued)})
    suspend(child.pid)
    threading.Timer(3.0, os.kill, [child.pid, signal.SIGCONT]).start()
    assert child.inspect(good_part(1)).score > 0
    assert child.restarts == 0


def test_the_queue_for_a_processor_is_known(child):
    assert all(ns >= 0 for ns in _queued_ns(child.pid).values())
    assert _queued_ns(child.pid)
    assert not _queued_ns(2**22 + 1)


def test_a_device_hears_of_each_mapping_and_before_one_goes():
    memory, heard = Memory(os.memfd_create("frames")), []
    memory.lend = lambda lent: heard.append(None if lent is None else lent.size)
    for size in (100, 5000, 40):
        memory.hold(size)
    assert heard == [None, 100, None, 5000]
    memory.close()
