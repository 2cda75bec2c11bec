"""OpenVINO against ONNX Runtime, the oracle; its cache; what is said where it is missing."""

import hmac
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.backends.opening import open_backend, open_inspector
from engine.backends.openvino import OpenVinoBackend, find_openvino
from engine.bundle import Bundle
from engine.errors import BackendError
from engine.methods import open_method
from tests.tiny_bundle import defective_part, good_part, tiny_bundle

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="needs OpenVINO: pip install '.[cpu]'"
)


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tiny_bundle(tmp_path / "bundle")


def views(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


@needs_openvino
def test_openvino_answers_as_the_oracle_does(bundle):
    with open_backend(bundle, backend="openvino") as backend, OnnxRuntimeBackend(bundle) as oracle:
        assert backend.name == "openvino cpu fp32"
        for count in (1, 3):
            found, expected = backend.run(views(count)), oracle.run(views(count))
            for name in ("score_map", "attention"):
                maps = found[name]
                assert maps.shape == (count, 8, 8)
                assert maps.dtype == np.float32
                np.testing.assert_allclose(maps, expected[name], atol=1e-4)
        one, other = (open_method(bundle.manifest.method, each) for each in (backend, oracle))
        for frame in (good_part(1), defective_part(2), defective_part(3)[..., 0].copy()):
            assert one.inspect(frame).box == other.inspect(frame).box
            assert one.inspect(frame).score == pytest.approx(other.inspect(frame).score, abs=1e-3)


@needs_openvino
def test_lanes_do_not_mix_their_answers(bundle):
    frames = views(40)
    with open_backend(bundle, backend="openvino") as backend:
        expected = backend.run(frames)["score_map"]
        with ThreadPoolExecutor(backend.workers + 1) as threads:
            found = list(
                threads.map(lambda at: backend.run(frames[at : at + 1])["score_map"], range(40))
            )
    np.testing.assert_array_equal(np.concatenate(found), expected)


@needs_openvino
def test_every_opening_of_an_int8_network_gives_the_same_scores(bundle, tmp_path, monkeypatch):
    # With one compiled network of two streams three to six of twenty openings were wrong.
    monkeypatch.setattr(Bundle, "network", lambda *_: strided_int8_network(64))
    found = []
    for opening in range(6):
        with OpenVinoBackend(bundle, threads=2, cache=tmp_path / str(opening // 2)) as backend:
            found += [backend.run(views(1))["score_map"] for _ in range(backend.workers)]
    assert len(found) == 12
    for each in found[1:]:
        np.testing.assert_array_equal(each, found[0])


def strided_int8_network(side: int) -> bytes:
    """Residual blocks, whose second halves start with 1×1 convolutions of stride 2.

    Between those OpenVINO computes in fp32, from weights that it makes of the int8 ones while it
    builds the network.
    """
    channels = 64
    rng = np.random.default_rng(0)
    nodes, constants = [], []

    def constant(value):
        constants.append(numpy_helper.from_array(np.asarray(value), f"constant{len(constants)}"))
        return constants[-1].name

    def node(kind, *inputs, **attributes):
        nodes.append(helper.make_node(kind, inputs, [f"{kind}{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def rounded(x):
        ranges = constant(np.float32(4 / 255)), constant(np.uint8(0))
        return node("DequantizeLinear", node("QuantizeLinear", x, *ranges), *ranges)

    def convolved(x, *, of=channels, stride=1):
        weights = node(
            "DequantizeLinear",
            constant(rng.integers(-63, 64, (channels, of, 1, 1)).astype(np.int8)),
            constant((rng.uniform(0.7, 2.1, channels) / 63 / np.sqrt(of)).astype(np.float32)),
            constant(np.zeros(channels, np.int8)),
            axis=0,
        )
        bias = constant(rng.normal(0, 0.1, channels).astype(np.float32))
        return node("Conv", x, weights, bias, kernel_shape=[1, 1], strides=[stride, stride])

    def joined(one, other):
        return rounded(node("Relu", node("Add", rounded(one), other)))

    floats = node("Div", node("Cast", "views", to=TensorProto.FLOAT), constant(np.float32(255)))
    x = convolved(rounded(node("Transpose", floats, perm=[0, 3, 1, 2])), of=3)
    x = rounded(node("Relu", x))
    while side > 1:
        x = joined(convolved(rounded(node("Relu", convolved(x)))), x)
        halved = rounded(node("Relu", convolved(x, stride=2)))
        x = joined(convolved(halved), rounded(convolved(x, stride=2)))
        side //= 2
    outputs = ("score_map", "attention")
    nodes += [helper.make_node("ReduceMean", [x, "axis"], [name], keepdims=0) for name in outputs]
    constants.append(numpy_helper.from_array(np.array([1]), "axis"))
    graph = helper.make_graph(
        nodes,
        "strided",
        [helper.make_tensor_value_info("views", TensorProto.UINT8, ["N", 64, 64, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1, 1]) for name in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@needs_openvino
def test_what_one_run_found_stays_when_the_next_comes(bundle):
    with open_backend(bundle, backend="openvino") as backend:
        found = backend.run(views(1))["score_map"]
        before = found.copy()
        backend.run(255 - views(1))
    np.testing.assert_array_equal(found, before)


@needs_openvino
def test_views_of_another_size_or_type_are_refused(bundle):
    with open_backend(bundle, backend="openvino") as backend:
        for wrong in (np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 64, 64, 3), np.float32)):
            with pytest.raises(BackendError, match=r"takes uint8 \(N, 64, 64, 3\)"):
                backend.run(wrong)


@needs_openvino
@pytest.mark.parametrize("damage", ["none", "flip", "cut", "empty"])
def test_a_compiled_network_is_used_again_unless_it_is_damaged(bundle, tmp_path, damage):
    with open_backend(bundle, backend="openvino") as backend:
        expected = backend.run(views(1))["score_map"]
    (blob,) = (tmp_path / "cache" / "atac-agent" / "openvino").glob("*.blob")
    whole = blob.read_bytes()
    written = blob.stat().st_mtime_ns
    if damage == "flip":
        blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage != "none":
        blob.write_bytes(whole[: len(whole) // 2 if damage == "cut" else 0])
    with open_backend(bundle, backend="openvino") as backend:
        np.testing.assert_array_equal(backend.run(views(1))["score_map"], expected)
    assert (blob.stat().st_mtime_ns == written) == (damage == "none")
    assert len(blob.read_bytes()) == len(whole)


@needs_openvino
@pytest.mark.parametrize("forged", ["another network's", "a stranger's"])
def test_a_compiled_network_that_is_not_its_own_is_not_run(bundle, tmp_path, forged):
    cache = tmp_path / "cache" / "atac-agent" / "openvino"
    with open_backend(bundle, backend="openvino") as backend:
        expected = backend.run(views(1))["score_map"]
    (own,) = cache.glob("*.blob")
    with open_backend(tiny_bundle(tmp_path / "blind", gain=0), backend="openvino") as backend:
        assert not backend.run(views(1))["score_map"].any()
    (other,) = set(cache.glob("*.blob")) - {own}
    if forged == "another network's":
        own.write_bytes(other.read_bytes())
    else:
        key, blob = bytes(32), other.read_bytes()[:-65]
        tag = hmac.new(key, f"{own.name}\n".encode() + blob, "sha256").hexdigest()
        own.write_bytes(blob + b"\n" + tag.encode())
        (cache / "seal.key").write_bytes(key)
        (cache / "seal.key").chmod(0o644)
    with open_backend(bundle, backend="openvino") as backend:
        np.testing.assert_array_equal(backend.run(views(1))["score_map"], expected)
    assert (cache / "seal.key").stat().st_mode & 0o777 == 0o600
    assert (cache / "seal.key").read_bytes() != bytes(32)


@needs_openvino
def test_another_network_has_a_compiled_network_of_its_own_and_old_ones_go(bundle, tmp_path):
    cache = tmp_path / "cache" / "atac-agent" / "openvino"
    for gain in range(10):
        other = tiny_bundle(tmp_path / f"bundle-{gain}", gain=gain + 1)
        with open_backend(other, backend="openvino") as backend:
            backend.run(views(1))
    assert len(list(cache.glob("*.blob"))) == 8


@needs_openvino
def test_a_device_without_a_place_for_the_cache_compiles(bundle, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with open_backend(bundle, backend="openvino") as backend:
        assert backend.run(views(1))["score_map"].shape == (1, 8, 8)


@needs_openvino
def test_a_network_that_is_none_is_an_error_with_the_bundle_s_name(tmp_path, monkeypatch):
    from engine.bundle import open_bundle

    broken = tiny_bundle(tmp_path / "bundle")
    monkeypatch.setattr(type(broken), "network", lambda *_: b"not a network")
    with pytest.raises(BackendError, match=r"cannot load .*bundle, fp32"):
        open_backend(open_bundle(tmp_path / "bundle"), backend="openvino")


@needs_openvino
def test_nothing_of_the_telemetry_package_is_loaded():
    code = (
        "import sys; from engine.backends.openvino import find_openvino; find_openvino();"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry.')])"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@needs_openvino
def test_bf16_is_computed_where_the_processor_can_and_refused_elsewhere(bundle):
    has = find_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in has:
        with pytest.raises(BackendError, match=r"does not compute in bf16 .*int8 or fp32, and cal"):
            open_backend(bundle, backend="openvino", precision="bf16")
        return
    with open_backend(bundle, backend="openvino", precision="bf16") as backend:
        assert backend.name == "openvino cpu bf16"
        found = backend.run(views(2))["score_map"]
    with OnnxRuntimeBackend(bundle) as oracle:
        np.testing.assert_allclose(found, oracle.run(views(2))["score_map"], rtol=0.05, atol=0.5)


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_bf16_is_openvino_s_alone(bundle, backend):
    for opened in (open_backend, open_inspector):
        with pytest.raises(BackendError, match="does not compute in bf16, but in fp32"):
            opened(bundle, backend=backend, precision="bf16")


def test_without_the_package_the_remedy_is_named(bundle, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"'.\[cpu\]'"):
        open_backend(bundle, backend="openvino")
    with open_backend(bundle, backend="openvino", fallback="onnxruntime") as backend:
        assert backend.name == "onnxruntime cpu fp32"
    assert "as bundle.fallback allows" in caplog.text
