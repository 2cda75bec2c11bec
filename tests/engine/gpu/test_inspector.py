"""The whole inspection on the device, with stand-ins at the driver seam that compute for real.

The kernels are the C++ twins of the CUDA ones, the network is ONNX Runtime's, memory counts itself
and its borders are watched; a graph is what was enqueued while it was captured. That a GPU
computes the same is not proven here; `docs/gpu.md` says what has run.
"""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from engine.attention import CropSpec, attention_box
from engine.backends.opening import open_inspector
from engine.backends.tensorrt.backend import open_plan_inspector
from engine.backends.tensorrt.plans import ensure_plan
from engine.errors import BackendError, InspectionError
from engine.frame import Box
from engine.gpu import inspector as inspector_module
from engine.gpu import program
from engine.gpu.compiler import compile_kernels, load_compiler
from engine.gpu.device import MAX_BATCH, Geometry, geometry_of
from engine.gpu.verdicts import cache_folder
from engine.methods.atac import atac_of
from engine.view import view as engine_view
from engine.view import zoomed
from tests.engine.gpu.frames import BAYER, LINE, PAPER, PLAIN, expected, grey
from tests.engine.gpu.gpu_machine import gpu_machine
from tests.engine.gpu.scripted_gpu import GPU, scripted_tensorrt
from tests.tiny_bundle import defective_part, good_part, tiny_bundle


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path, kernels):
    """A machine with a GPU, TensorRT, pycuda and NVRTC."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with gpu_machine(kernels) as machine:
        yield machine


@pytest.fixture
def cuda(machine):
    return machine.cuda


@pytest.fixture
def driver(machine):
    return machine.driver


@pytest.fixture
def tensorrt(machine):
    return machine.tensorrt


@pytest.fixture
def opened(tmp_path, tensorrt):
    """A bundle with this view, its plan built, and the inspection opened on it."""

    def call(view=LINE, **changed):
        bundle = tiny_bundle(tmp_path / "bundle", view=view, **changed)
        ensure_plan(cache_folder(), bundle, "fp32", gpu=GPU, tensorrt=tensorrt)
        return bundle, open_plan_inspector(bundle)

    return call


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.zoomed == other.zoomed
        assert one.box == other.box
        assert one.score == pytest.approx(other.score, abs=1e-4)
        for each, wanted_pass in zip(one.passes, other.passes, strict=True):
            assert each.box == wanted_pass.box
            assert each.score == pytest.approx(wanted_pass.score, abs=1e-4)
        assert one.deviation == pytest.approx(other.deviation, abs=1e-4)
        np.testing.assert_allclose(one.attention, other.attention, atol=1e-4)
        np.testing.assert_allclose(one.score_map, other.score_map, atol=1e-3)


@pytest.mark.parametrize("view", [LINE, PAPER, PLAIN], ids=["line", "paper", "plain"])
@pytest.mark.parametrize("size", [(96, 80), (400, 300), (300, 431), (40, 30)])
def test_mono_frames_are_inspected_as_on_the_host(opened, view, size):
    width, height = size
    parts = [grey(make(3, width=width, height=height)) for make in (good_part, defective_part)]
    bundle, inspector = opened(view)
    with inspector:
        found = [inspector.inspect(part) for part in parts]
    assert_same(found, expected(bundle, parts))


@pytest.mark.parametrize("view", [replace(PAPER, equalise="never"), PLAIN], ids=["view", "frame"])
def test_rgb_frames_are_inspected_as_on_the_host(opened, view):
    parts = [defective_part(seed, width=100, height=130) for seed in range(3)]
    bundle, inspector = opened(view)
    with inspector:
        found = [inspector.inspect(part) for part in parts]
    wanted = expected(bundle, parts)
    assert_same(found, wanted)
    assert any(each.zoomed for each in wanted)


@pytest.mark.parametrize("view", [LINE, PAPER], ids=["line", "paper"])
def test_equalised_rgb_frames_are_nearly_the_hosts(opened, view):
    # L of LAB is within one grey level on 99.9 % of the values, not equal: test_cuda_kernels.
    part = defective_part(5)
    bundle, inspector = opened(view)
    with inspector:
        found = inspector.inspect(part)
    (wanted,) = expected(bundle, [part])
    assert found.box == wanted.box
    assert found.score == pytest.approx(wanted.score, abs=0.5)


@pytest.mark.parametrize(("form", "code"), BAYER)
def test_raw_bayer_frames_go_up_as_they_are(opened, form, code):
    raw = grey(defective_part(1, width=150, height=120))
    bundle, inspector = opened(PLAIN)
    with inspector:
        found = inspector.inspect_all([raw], [form])
    assert_same(found, expected(bundle, [cv2.cvtColor(raw, code)]))


def test_a_graph_is_captured_once_for_each_size_and_replayed(opened, cuda, driver):
    bundle, inspector = opened()
    parts = [grey(defective_part(seed)) for seed in range(4)]
    wide = grey(defective_part(4, width=120, height=90))
    with inspector:
        found = [inspector.inspect(parts[0])]
        launched = len(cuda.launched)
        found += [inspector.inspect(part) for part in parts[1:]]
        assert (driver.captures, driver.launches, len(cuda.launched)) == (1, 4, launched)
        found.append(inspector.inspect(wide))
        found.append(inspector.inspect(parts[0]))
        assert (driver.captures, driver.launches) == (2, 6)
    assert not driver.graphs
    assert_same(found, expected(bundle, [*parts, wide, parts[0]]))
    assert found[0].score == found[-1].score


@pytest.mark.parametrize("refused", [False, True])
def test_frames_in_lent_memory_go_up_from_where_they_lie(opened, driver, refused):
    if refused:
        driver._failing = "cuMemHostRegister_v2"
    parts = [grey(defective_part(seed)) for seed in range(3)]
    memory = np.zeros(100_000, np.uint8)
    frame = memory[: parts[0].size].reshape(parts[0].shape)
    bundle, inspector = opened()
    found = []
    with inspector:
        for _ in range(2):  # lent again, as memory that has grown
            inspector.lend(None)
            inspector.lend(memory)
        assert driver.locked == ({} if refused else {memory.ctypes.data: memory.nbytes})
        for part in parts:
            frame[:] = part
            found.append(inspector.inspect(frame))
        (program,) = inspector._programs.values()
        assert program._frames[0].any() == refused
        found.append(inspector.inspect(parts[0]))  # one that lies elsewhere
    assert not driver.locked
    assert_same(found, expected(bundle, [*parts, parts[0]]))


def test_large_frames_go_up_in_parts(opened, monkeypatch):
    monkeypatch.setattr(program, "_PART", 1000)
    parts = [grey(defective_part(seed, width=200, height=90))[:, ::2] for seed in range(2)]
    bundle, inspector = opened()
    with inspector:
        assert_same([inspector.inspect(each) for each in parts], expected(bundle, parts))


def test_the_host_waits_once_for_each_frame(opened, cuda):
    _, inspector = opened()
    with inspector:
        inspector.inspect(good_part(0))
        before = cuda.waits
        inspector.inspect(good_part(1))
        assert cuda.waits == before + 1


@pytest.mark.parametrize("view", [LINE, PAPER], ids=["line", "paper"])
def test_the_views_are_the_engines(opened, view):
    part = grey(defective_part(1))
    bundle, inspector = opened(view)
    with inspector:
        first, second = inspector.views(part)
    (wanted,) = expected(bundle, [part])
    assert wanted.zoomed
    whole = engine_view(part, Box.around(part), view)
    assert np.array_equal(first, whole)
    box = attention_box(wanted.attention, view.box, atac_of(bundle).crop)
    assert np.array_equal(second, zoomed(part, whole, box, view)[0])


def test_every_stage_can_be_timed_alone(opened, driver):
    _, inspector = opened()
    part = grey(defective_part(1))
    with inspector:
        before = inspector.inspect(part)
        stages = inspector.stages([geometry_of(part)], repeats=2)
        assert list(stages) == [
            *("upload", "view_1", "pass_1", "attention", "view_2", "pass_2", "download"),
        ]
        assert all(each.kernels and each.seconds > 0 for each in stages.values())
        assert len(driver.graphs) == 1
        assert inspector.inspect(part).score == before.score


def test_what_is_prepared_is_not_made_again(opened, cuda, driver):
    _, inspector = opened()
    with inspector:
        inspector.prepare([Geometry(width=96, height=80, form="rgb")])
        alive = cuda.alive
        inspector.inspect(good_part(0))
        assert (driver.captures, cuda.alive) == (1, alive)


def test_frames_of_several_cameras_go_through_together(opened, driver):
    parts = [
        grey(good_part(0)),
        grey(defective_part(1, width=130, height=70)),
        grey(defective_part(2)),
        np.zeros((50, 60), np.uint8),
    ]
    bundle, inspector = opened()
    with inspector:
        found = inspector.inspect_all(parts)
        assert (driver.captures, driver.launches) == (1, 1)
    assert_same(found, expected(bundle, parts))


def test_more_cameras_than_a_plan_takes_go_in_turns(opened, driver):
    parts = [grey(defective_part(seed)) for seed in range(MAX_BATCH + 3)]
    bundle, inspector = opened()
    with inspector:
        found = inspector.inspect_all(parts)
        assert (driver.captures, driver.launches) == (2, 2)
    assert_same(found, expected(bundle, parts))


@pytest.mark.parametrize("view", [LINE, PAPER], ids=["line", "paper"])
def test_a_box_that_covers_the_frame_scores_the_same_bits_twice(opened, view):
    _, inspector = opened(view, crop=CropSpec(gate=100.0))
    with inspector:
        found = inspector.inspect(defective_part(0))
    assert not found.zoomed
    assert found.box == Box.around(defective_part(0))
    assert found.score == found.passes[0].score


def test_everything_is_given_back(opened, cuda):
    _, inspector = opened()
    with inspector:
        inspector.inspect(good_part(0))
        inspector.inspect_all([good_part(0), good_part(1)])
        assert cuda.alive > 0
        assert (cuda.retained, cuda.current) == (1, 0)
    assert (cuda.retained, cuda.current, cuda.alive) == (0, 0, 0)


def test_memory_of_sizes_long_unseen_is_given_back(opened, cuda, driver, monkeypatch):
    monkeypatch.setattr(inspector_module, "_KEPT", 2)
    _, inspector = opened()
    with inspector:
        for width in (60, 70):
            inspector.inspect(good_part(0, width=width))
        alive = cuda.alive
        inspector.inspect(good_part(0, width=60))
        inspector.inspect(good_part(0, width=80))
        assert (cuda.alive, driver.captures) == (alive, 3)
        inspector.inspect(good_part(0, width=60))
        assert driver.captures == 3
        inspector.inspect(good_part(0, width=70))
        assert (cuda.alive, driver.captures) == (alive, 4)


@pytest.mark.parametrize("call", ["init", "module_from_buffer", "mem_alloc", "pagelocked_empty"])
def test_a_gpu_without_room_leaves_nothing_behind(opened, cuda, call):
    cuda.failing = call
    with (
        pytest.raises(BackendError, match=f"cannot start: .*{call} failed.*see nvidia-smi"),
        opened()[1] as inspector,
    ):
        inspector.warm_up()
    assert (cuda.retained, cuda.current, cuda.alive) == (0, 0, 0)


@pytest.mark.parametrize("call", ["mem_alloc", "pagelocked_empty"])
def test_a_size_that_the_gpu_has_no_room_for_costs_that_part_alone(opened, cuda, call):
    bundle, inspector = opened()
    part = grey(good_part(0))
    with inspector:
        inspector.inspect(part)
        cuda.failing = call
        with pytest.raises(InspectionError, match=rf"no memory for frames of 120×90 mono: {call}"):
            inspector.inspect(grey(good_part(0, width=120, height=90)))
        cuda.failing = ""
        assert_same([inspector.inspect(part)], expected(bundle, [part]))
    assert (cuda.retained, cuda.current, cuda.alive) == (0, 0, 0)


def test_memory_of_other_sizes_is_given_up_where_there_is_no_room_beside_it(opened, cuda, driver):
    bundle, inspector = opened()
    parts = [grey(defective_part(0, width=width)) for width in (60, 70, 80)]
    with inspector:
        before = cuda.alive
        inspector.inspect(parts[0])
        one = cuda.alive - before
        cuda.room = before + 2 * one + one // 2
        found = [inspector.inspect(part) for part in (*parts, parts[0])]
        assert cuda.alive == before + 2 * one
        assert driver.captures == 4
    assert_same(found, expected(bundle, [*parts, parts[0]]))
    assert (cuda.retained, cuda.current, cuda.alive) == (0, 0, 0)


@pytest.mark.parametrize(
    "call", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"]
)
def test_a_capture_that_is_refused_is_one_sentence(opened, cuda, driver, call):
    _, inspector = opened()
    driver._failing = call
    with inspector, pytest.raises(BackendError, match=rf"{call} answered 999.*nvidia-smi"):
        inspector.inspect(good_part(0))
    assert cuda.alive == 0


def test_a_device_lost_in_flight_is_an_error_and_closing_still_works(opened, cuda, driver):
    _, inspector = opened()
    with inspector:
        inspector.inspect(good_part(0))
        driver._failing = "cuGraphLaunch"
        with pytest.raises(BackendError, match="cuGraphLaunch answered 999"):
            inspector.inspect(good_part(1))
        cuda.failing = "free"
    assert (cuda.retained, cuda.current) == (0, 0)


def test_where_a_gpu_is_configured_it_inspects(opened):
    bundle, inspector = opened()
    inspector.__exit__(None, None, None)
    part = grey(defective_part(0))
    with open_inspector(bundle, backend="tensorrt") as found:
        assert found.name == f"tensorrt {GPU.name} fp32, all on the device"
        assert found.workers == 1
        assert_same([found.inspect(part)], expected(bundle, [part]))


@pytest.mark.parametrize("call", ["mem_alloc", "cuStreamBeginCapture_v2", "cuGraphLaunch"])
def test_a_gpu_that_cannot_inspect_is_known_before_any_part_comes(opened, cuda, caplog, call):
    bundle, inspector = opened()
    inspector.__exit__(None, None, None)
    cuda.failing = call
    with pytest.raises(BackendError, match=call):
        open_inspector(bundle, backend="tensorrt")
    with open_inspector(bundle, backend="tensorrt", fallback="onnxruntime") as found:
        assert found.name == "onnxruntime cpu fp32"
        assert found.inspect(good_part(0)).score > 0
    assert f"{call}" in caplog.text
    assert "as bundle.fallback allows" in caplog.text
    assert (cuda.retained, cuda.current, cuda.alive) == (0, 0, 0)


def _truncated(plan):
    plan.write_bytes(plan.read_bytes()[:-1])


def _foreign(plan):
    plan.write_bytes(b"plan:" + bytes(1000))


def _without_record(plan):
    plan.with_suffix(".json").unlink()


def _recorded_for_another_gpu(plan):
    record = plan.with_suffix(".json")
    record.write_text(record.read_text().replace(GPU.name, "NVIDIA Test 2000"))


def _recorded_for_another_version(plan):
    record = plan.with_suffix(".json")
    record.write_text(record.read_text().replace("tensorrt 10.13.0", "tensorrt 10.12.0"))


@pytest.mark.parametrize(
    "damage",
    [
        _truncated,
        _foreign,
        _without_record,
        _recorded_for_another_gpu,
        _recorded_for_another_version,
    ],
)
def test_a_plan_that_is_not_ours_never_reaches_tensorrt(opened, cuda, tensorrt, damage):
    bundle, inspector = opened()
    inspector.__exit__(None, None, None)
    del tensorrt.module.deserialised
    (plan,) = cache_folder().glob("*.plan")
    damage(plan)
    with pytest.raises(BackendError, match=r"; build it with: agent build --bundle"):
        open_inspector(bundle, backend="tensorrt")
    assert not hasattr(tensorrt.module, "deserialised")
    assert cuda.retained == 0


@pytest.mark.parametrize(
    "built_with",
    [
        {"gpu": replace(GPU, name="NVIDIA Test 2000")},
        {"gpu": replace(GPU, capability="8.9")},
        {"tensorrt": scripted_tensorrt("10.12.0")},
        {"tensorrt": scripted_tensorrt("11.0.0")},
    ],
)
def test_a_plan_of_another_gpu_or_version_is_not_taken(tmp_path, tensorrt, built_with):
    bundle = tiny_bundle(tmp_path / "bundle", view=LINE)
    ensure_plan(cache_folder(), bundle, "fp32", **{"gpu": GPU, "tensorrt": tensorrt, **built_with})
    with pytest.raises(BackendError, match=r"there is no plan for fp32 on NVIDIA Test 1000"):
        open_inspector(bundle, backend="tensorrt")
    assert not hasattr(tensorrt.module, "deserialised")


def test_memory_that_a_running_copy_reads_is_not_given_back(opened, cuda):
    _, inspector = opened()
    with inspector:
        waits = cuda.waits
        cuda.failing = "weights"  # after the upload was enqueued
        with pytest.raises(BackendError, match="weights failed"):
            inspector.inspect(good_part(0))
        assert cuda.waits == waits + 1


@pytest.mark.parametrize(
    ("pixels", "form", "message"),
    [
        (
            np.zeros((5000, 5000), np.uint8),
            None,
            r"5000×5000 pixels is larger than the 24 megapixels .* set bundle.max_megapixels",
        ),
        (np.zeros((8, 8), np.float32), None, "mono frames are uint8"),
        (np.zeros((0, 8), np.uint8), None, "mono frames have rows and columns"),
        (np.zeros(8, np.uint8), None, "frames have rows and columns"),
        (np.zeros((8, 8, 4), np.uint8), None, "rgb frames are uint8"),
        (np.zeros((8, 8, 3), np.uint8), "bayer_rggb", "bayer_rggb frames are uint8"),
        (np.zeros((2, 8), np.uint8), "bayer_rggb", "has no colours"),
    ],
)
def test_frames_that_cannot_be_inspected_are_refused(opened, cuda, pixels, form, message):
    _, inspector = opened()
    with inspector:
        with pytest.raises(InspectionError, match=message):
            inspector.inspect_all([pixels], [form] if form else None)
        assert not cuda.launched


def test_a_broken_network_is_heard_of(opened, monkeypatch):
    _, inspector = opened(gain=float("nan"))
    with inspector, pytest.raises(InspectionError, match="answered a score of nan"):
        inspector.inspect(defective_part(0))


def test_the_form_follows_from_the_shape():
    assert geometry_of(np.zeros((3, 5), np.uint8)) == Geometry(width=5, height=3, form="mono")
    assert geometry_of(np.zeros((3, 5, 3), np.uint8)) == Geometry(width=5, height=3, form="rgb")


def test_a_machine_without_nvrtc_is_told_what_to_install(monkeypatch):
    tried = []

    def places(names):
        tried.extend(names)
        return iter([Path("no.so")])

    monkeypatch.setattr("engine.gpu.compiler._places", places)
    for driver, package in (("13.1", "nvidia-cuda-nvrtc"), ("12.4", "nvidia-cuda-nvrtc-cu12")):
        with pytest.raises(BackendError, match=rf"NVRTC for CUDA .*pip install {package}$"):
            load_compiler(driver)
    # What a newer major version compiles the older driver does not load.
    assert tried == ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.12"]


@pytest.mark.parametrize("capability", ["7.5", "12.0"])
def test_nvrtc_compiles_the_kernels_without_a_gpu(capability):
    try:
        compiler = load_compiler(GPU.driver)
    except BackendError:
        pytest.skip("needs NVRTC: make builders, or the CUDA toolkit")
    found = compile_kernels(replace(GPU, capability=capability), compiler)
    assert set(found) == {"view", "box", "score"}
    assert all(code.startswith(b"\x7fELF") for code in found.values())
    for source, names in program.KERNELS.items():
        assert all(name.encode() in found[source] for name in names)
