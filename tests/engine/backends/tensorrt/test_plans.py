"""Plans: built once, kept, refused when they are not what was built."""

import ctypes
import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from PIL import Image

from agent import cli
from agent.demo import BUNDLE
from engine.backends.tensorrt.backend import open_plan_backend
from engine.backends.tensorrt.plans import (
    build_plan,
    ensure_plan,
    find_tensorrt,
    plan_key,
    read_plan,
)
from engine.bundle import open_bundle
from engine.errors import BackendError
from engine.gpu import driver
from engine.gpu.device import MAX_BATCH
from engine.gpu.driver import load_driver, probe_gpu
from engine.gpu.verdicts import cache_folder
from tests.engine.gpu.gpu_machine import gpu_machine
from tests.engine.gpu.scripted_gpu import (
    GPU,
    Driver,
    ExecutionContext,
    memory,
    scripted_tensorrt,
)
from tests.tiny_bundle import defective_part, good_part, tiny_bundle

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None,
    reason="needs TensorRT-RTX: make builders",
)


@pytest.fixture
def bundle(tmp_path):
    return tiny_bundle(tmp_path / "bundle", precisions=("fp32", "int8"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "plans"


@pytest.fixture
def tensorrt():
    return scripted_tensorrt()


@pytest.fixture
def ensure(bundle, folder, tensorrt):
    def call(**changed):
        settings = {"gpu": GPU, "tensorrt": tensorrt, **changed}
        precision = settings.pop("precision", "fp32")
        return ensure_plan(folder, settings.pop("bundle", bundle), precision, **settings)

    return call


def test_a_plan_is_built_once(ensure, tensorrt, bundle):
    first, second = ensure(), ensure()
    assert (first.is_new, second.is_new) == (True, False)
    assert tensorrt.module.builds == 1
    assert first.data == second.data == b"plan:" + bundle.network("fp32")
    assert tensorrt.module.profile == (
        "views", (1, 64, 64, 3), (1, 64, 64, 3), (MAX_BATCH, 64, 64, 3),
    )  # fmt: skip
    assert tensorrt.module.flags == 1 << 1


@pytest.mark.parametrize(
    "changed",
    [
        {"precision": "int8"},
        {"gpu": replace(GPU, name="NVIDIA Test 2000")},
        {"gpu": replace(GPU, capability="8.9")},
        {"tensorrt": scripted_tensorrt("11.0.0")},
    ],
)
def test_another_precision_gpu_or_version_gets_a_plan_of_its_own(ensure, changed):
    first, other = ensure(), ensure(**changed)
    assert other.is_new
    assert other.path != first.path
    assert not ensure().is_new


def test_another_network_gets_a_plan_of_its_own(ensure, tmp_path):
    first = ensure()
    other = ensure(bundle=tiny_bundle(tmp_path / "other", gain=41))
    assert other.path != first.path


def test_the_driver_version_may_change(ensure):
    ensure()
    assert not ensure(gpu=replace(GPU, driver="13.1")).is_new


DAMAGE = {
    "truncated": lambda plan: plan.write_bytes(plan.read_bytes()[:-1]),
    "empty": lambda plan: plan.write_bytes(b""),
    "one bit": lambda plan: plan.write_bytes(
        bytes([plan.read_bytes()[0] ^ 1]) + plan.read_bytes()[1:]
    ),
    "gone": lambda plan: plan.unlink(),
    "no record": lambda plan: plan.with_suffix(".json").unlink(),
    "no JSON": lambda plan: plan.with_suffix(".json").write_text("plan"),
    "unknown keys": lambda plan: plan.with_suffix(".json").write_text('{"key": 1}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_plan_is_refused_and_built_again(ensure, bundle, folder, tensorrt, damage):
    plan = ensure()
    DAMAGE[damage](plan.path)
    with pytest.raises(BackendError):
        read_plan(folder, plan.record.key)
    again = ensure()
    assert again.is_new
    assert read_plan(folder, again.record.key).data == plan.data


def test_a_plan_under_anothers_name_is_refused(ensure, folder):
    own, other = ensure(), ensure(gpu=replace(GPU, name="NVIDIA Test 2000"))
    for suffix in (".plan", ".json"):
        own.path.with_suffix(suffix).write_bytes(other.path.with_suffix(suffix).read_bytes())
    with pytest.raises(BackendError, match=r"built for .*2000.*, not for .*1000"):
        read_plan(folder, own.record.key)


def test_no_half_plan_is_ever_in_place(ensure, folder, monkeypatch):
    # The crash: everything is written, the record is not.
    from engine.backends.tensorrt import plans

    real = plans.replace_file

    def crash(path, data):
        if path.suffix == ".json":
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(plans, "replace_file", crash)
    with pytest.raises(BackendError, match=r"cannot be written \(No space left on device\)"):
        ensure()
    monkeypatch.undo()
    assert ensure().is_new


def test_timings_are_kept_and_damaged_ones_forgotten(ensure, tensorrt, folder):
    ensure()
    ensure(precision="int8")
    assert tensorrt.module.timings == [b"", b"timings"]
    (timing,) = folder.glob("*.timing")
    timing.write_bytes(timing.read_bytes() + b"!")
    next(folder.glob("*.plan")).unlink()
    next(folder.glob("*.plan")).unlink()
    ensure()
    assert tensorrt.module.timings[-1] == b""


def test_progress_is_told(ensure):
    heard = []
    ensure(progress=lambda *step: heard.append(step))
    assert heard == [("Building", 0, 2), ("Building", 1, 2), ("Building", 2, 2)]


def test_what_cannot_be_parsed_or_built_says_why(ensure):
    with pytest.raises(BackendError, match=r"cannot parse the fp32 network of .*RoiAlign"):
        ensure(tensorrt=scripted_tensorrt(parses=False))
    with pytest.raises(BackendError, match=r"cannot build .*no room for a tactic.*nvidia-smi"):
        ensure(tensorrt=scripted_tensorrt(builds=False))


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        ({"tensorrt": "10.12.0.36"}, "tensorrt"),
        ({"tensorrt": "11.3.1"}, "tensorrt"),
        ({"tensorrt_rtx": "1.7.1"}, "tensorrt_rtx"),
        ({"tensorrt": "10.13.0", "tensorrt_rtx": "1.7.1"}, "tensorrt"),
        ({"tensorrt": "10.11.0"}, None),
        ({"tensorrt": "12.0.0"}, None),
    ],
)
def test_tensorrt_is_found_under_both_names(monkeypatch, versions, found):
    for name in ("tensorrt", "tensorrt_rtx"):
        version = versions.get(name)
        module = None if version is None else SimpleNamespace(__version__=version)
        monkeypatch.setitem(sys.modules, name, module)
    if found is None:
        with pytest.raises(BackendError, match=r"is not supported; install with: pip install"):
            find_tensorrt()
    else:
        assert (find_tensorrt().name, find_tensorrt().version) == (found, versions[found])


def test_a_machine_without_tensorrt_is_told_what_to_install(monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match=r"install with: pip install '.\[gpu\]'"):
        find_tensorrt()


def test_a_tensorrt_that_lacks_a_library_is_named(monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10 is not there')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendError, match=r"tensorrt cannot be imported \(libnvinfer.so.10"):
        find_tensorrt()


def test_the_gpu_is_known_by_name_and_capability():
    assert probe_gpu(Driver()) == GPU


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (Driver("cuInit", 100), "finds no GPU here"),
        (Driver("cuInit", 803), r"cuInit answered 803\); see nvidia-smi"),
        (Driver("cuDeviceGetName"), "cuDeviceGetName answered 999"),
    ],
)
def test_a_driver_that_fails_is_one_sentence(driver, message):
    with pytest.raises(BackendError, match=message) as raised:
        probe_gpu(driver)
    assert "bundle.backend: onnxruntime" in str(raised.value)


def test_a_machine_without_a_driver_is_told_so(monkeypatch):
    monkeypatch.setattr(driver, "_LIBRARY", "libcuda-that-is-not-there.so.1")
    with pytest.raises(BackendError, match=r"no NVIDIA driver here .* install it, or run on"):
        load_driver()


def test_plans_live_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "atac-agent" / "plans"


@pytest.fixture
def agent(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["agent", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return end.value.code, printed.out, printed.err

    return call


@pytest.fixture
def on_a_gpu(kernels):
    with gpu_machine(kernels) as machine:
        yield machine


@pytest.mark.usefixtures("on_a_gpu")
def test_agent_build_builds_what_tensorrt_runs_of_the_bundle_and_keeps_it(agent, bundle, folder):
    code, out, _ = agent("build", "--bundle", bundle.path, "--plans", folder, "--json")
    facts = json.loads(out)
    assert code == 0
    assert [fact["key"]["precision"] for fact in facts] == ["fp32"]
    assert all(fact["is_new"] for fact in facts)
    code, out, _ = agent("build", "--bundle", bundle.path, "--plans", folder)
    assert (code, out.count("still fits")) == (0, 1)
    assert GPU.name in out


@pytest.mark.usefixtures("on_a_gpu")
def test_agent_build_names_a_precision_that_is_missing(agent, bundle, folder):
    code, _, error = agent("build", "--bundle", bundle.path, "--precision", "fp16")
    assert code == 1
    assert "has no fp16 network" in error


@pytest.fixture
def parts(tmp_path):
    for kind, make in (("good", good_part), ("defective", defective_part)):
        (tmp_path / kind).mkdir()
        for seed in range(2):
            Image.fromarray(make(seed)).save(tmp_path / kind / f"{seed}.png")
    return tmp_path


@pytest.mark.usefixtures("on_a_gpu")
def test_agent_build_compares_the_plans_verdicts(agent, bundle, folder, parts):
    options = ("--bundle", bundle.path, "--plans", folder, "--precision", "fp32")
    images = ("--good", parts / "good", "--defective", parts / "defective")
    code, out, _ = agent("build", *options)
    assert (code, "never compared" in out) == (0, True)
    code, out, _ = agent("build", *options, *images, "--json")
    (fact,) = json.loads(out)
    parity = fact["parity"]["parity"]
    assert code == 0
    assert (parity["images"], parity["flips"]) == (4, [])
    assert parity["compared_with"] == "onnxruntime cpu fp32"
    assert parity["threshold_from"] == "these images"
    code, out, _ = agent("build", *options)
    assert "0 of 4 verdicts differ" in out
    open_plan_backend(bundle, plans=folder).__exit__(None, None, None)


@pytest.mark.usefixtures("on_a_gpu")
def test_agent_build_refuses_a_plan_that_changes_verdicts(
    agent, bundle, folder, parts, monkeypatch
):
    real = ExecutionContext._execute

    def deaf(self):
        """A plan whose score map is hardly there."""
        real(self)
        memory(self._addresses["score_map"], (8, 8), ctypes.c_float)[:] *= 0.01

    monkeypatch.setattr(ExecutionContext, "_execute", deaf)
    options = ("--bundle", bundle.path, "--plans", folder, "--precision", "fp32")
    images = ("--good", parts / "good", "--defective", parts / "defective")
    code, out, error = agent("build", *options, *images)
    assert (code, "2 of 4 verdicts differ" in out) == (1, True)
    assert "verdicts change with fp32: the agent will not run it" in error
    with pytest.raises(BackendError, match=r"changes verdicts: 2 of 4"):
        open_plan_backend(bundle, plans=folder)
    assert agent("build", *options)[0] == 1
    assert agent("build", *options, *images, "--accept-flips")[0] == 0
    open_plan_backend(bundle, plans=folder).__exit__(None, None, None)


@pytest.mark.usefixtures("on_a_gpu")
def test_agent_build_wants_images_where_it_is_told_to_compare(agent, bundle, tmp_path):
    code, _, error = agent("build", "--bundle", bundle.path, "--good", tmp_path / "nothing")
    assert (code, str(tmp_path / "nothing") in error) == (2, True)


def _shifted(run):
    def execute(context):
        run(context)
        memory(context._addresses["score_map"], (8, 8), ctypes.c_float)[:] += 1000

    return execute


@pytest.mark.usefixtures("on_a_gpu")
def test_an_image_that_cannot_be_read_is_no_fault_of_the_gpu(agent, bundle, folder, parts):
    (parts / "good" / "0.png").write_bytes(b"no image")
    options = ("--bundle", bundle.path, "--plans", folder, "--precision", "fp32")
    code, _, error = agent("build", *options, "--good", parts / "good")
    assert (code, "0.png" in error, "does not run" in error) == (1, True, False)


REFUSES = {
    "does not load": "cannot be loaded by tensorrt NVIDIA Test 1000 fp32",
    "does not run": "peaks failed: device lost",
    "computes something else": "the deviation of a grey frame is",
}


@pytest.mark.parametrize("fault", REFUSES)
def test_agent_build_says_built_of_nothing_that_does_not_run(
    agent, bundle, folder, on_a_gpu, monkeypatch, fault
):
    if fault == "does not load":
        on_a_gpu.tensorrt.module.Runtime.deserialize_cuda_engine = lambda *_: None
    elif fault == "does not run":
        on_a_gpu.cuda.failing = "peaks"
    else:
        monkeypatch.setattr(ExecutionContext, "_execute", _shifted(ExecutionContext._execute))
    code, out, error = agent("build", "--bundle", bundle.path, "--plans", folder)
    assert (code, out, error.count("\n")) == (1, "", 2)  # the first says what it does
    assert "does not run on NVIDIA Test 1000 (compute capability 8.6) with tensorrt 10.13" in error
    assert REFUSES[fault] in error
    assert error.endswith("or run with bundle.backend: cuda\n")


@pytest.mark.usefixtures("on_a_gpu")
def test_agent_build_compares_what_needs_no_plan(agent, bundle, folder, parts):
    options = ("--bundle", bundle.path, "--plans", folder, "--backend", "cuda")
    code, out, _ = agent("build", *options)
    assert (code, "never compared" in out) == (0, True)
    assert "runs on NVIDIA Test 1000 (compute capability 8.6) with onnxruntime 1.31.1" in out
    code, out, _ = agent("build", *options, "--good", parts / "good", "--json")
    (fact,) = json.loads(out)
    assert (code, fact["parity"]["parity"]["flips"]) == (0, [])
    assert not list(folder.glob("*.plan"))


def test_agent_build_knows_what_there_is_to_build(agent, bundle):
    code, _, error = agent("build", "--bundle", bundle.path, "--backend", "openvino")
    assert (code, "nothing is built for it" in error) == (2, True)
    code, _, error = agent("build", "--bundle", bundle.path, "--backend", "abacus")
    assert (code, "--backend: 'abacus'" in error) == (2, True)


def test_agent_build_without_a_driver_is_one_sentence(agent, bundle, monkeypatch):
    monkeypatch.setattr(driver, "_LIBRARY", "libcuda-that-is-not-there.so.1")
    code, out, error = agent("build", "--bundle", bundle.path)
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert "no NVIDIA driver here" in error


@pytest.mark.rtx
@needs_rtx
def test_tensorrt_rtx_builds_the_tiny_network_without_a_gpu(bundle):
    heard = []
    plan = build_plan(
        bundle.network("fp32"),
        find_tensorrt(),
        what="the tiny network",
        progress=lambda *step: heard.append(step),
    )
    assert len(plan) > 1000
    assert heard


@pytest.mark.rtx
@needs_rtx
def test_tensorrt_rtx_builds_the_demos_network_without_a_gpu():
    demo = open_bundle(BUNDLE)
    network = demo.network("fp32")
    assert len(build_plan(network, find_tensorrt(), what="the demo")) > 0.2 * len(network)


@pytest.mark.rtx
@needs_rtx
def test_tensorrt_rtx_says_why_it_cannot_parse():
    with pytest.raises(BackendError, match="cannot parse nonsense"):
        build_plan(b"nonsense", find_tensorrt(), what="nonsense")


@pytest.mark.rtx
@needs_rtx
def test_plans_of_tensorrt_rtx_are_kept_like_others(bundle, folder):
    tensorrt = find_tensorrt()
    first = ensure_plan(folder, bundle, "fp32", gpu=GPU, tensorrt=tensorrt)
    second = ensure_plan(folder, bundle, "fp32", gpu=GPU, tensorrt=tensorrt)
    assert second.data == first.data
    assert not second.is_new
    key = plan_key(bundle, "fp32", gpu=GPU, tensorrt=tensorrt)
    assert key.runtime.startswith("tensorrt_rtx ")
    assert not list(folder.glob("*.timing"))
