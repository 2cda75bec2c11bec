"""The torch reference: its logic on the CPU, since nothing here has a GPU."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.gpu import torch_reference
from benchmarks.gpu.torch_reference import (
    CudaReference,
    TorchDeviceNetwork,
    reference_network,
)
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.errors import BackendError
from engine.gpu.device import MAX_BATCH
from train.run import train_bundle


@pytest.fixture(scope="module")
def bundle(source, line, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "trained"
    return train_bundle(
        source, out, line, weights=None, defects=4, seed=0, accept_flips=True
    ).written.bundle


def views(count):
    return np.random.default_rng(count).integers(0, 256, (count, 48, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-3), ("fp16", 0.05)])
def test_it_says_what_onnx_runtime_says(bundle, precision, near):
    with (
        CudaReference(bundle, precision=precision, device="cpu") as backend,
        OnnxRuntimeBackend(bundle) as oracle,
    ):
        found, expected = backend.run(views(3)), oracle.run(views(3))
        assert (backend.name, backend.workers) == (f"torch cpu {precision}", 1)
    np.testing.assert_allclose(found["score_map"], expected["score_map"], atol=near)
    np.testing.assert_allclose(found["attention"], expected["attention"], atol=near)


def test_many_views_run_in_turns(bundle):
    with CudaReference(bundle, precision="fp32", device="cpu") as backend:
        together = backend.run(views(MAX_BATCH + 1))
        last = backend.run(views(MAX_BATCH + 1)[-1:])
    assert together["score_map"].shape == (MAX_BATCH + 1, 6, 6)
    np.testing.assert_allclose(together["score_map"][-1:], last["score_map"], atol=1e-4)


def test_the_network_is_folded_channels_last_and_half_in_its_backbone(bundle):
    network = reference_network(bundle, precision="fp16", device="cpu")
    assert not [part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert network.backbone.conv1.weight.dtype == torch.float16
    assert network.head.score.weight.dtype == torch.float32
    assert network.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not network.training


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 48, 48, 3), np.float32), views(1)[:0]],
)
def test_views_of_a_wrong_kind_are_refused(bundle, wrong):
    with (
        CudaReference(bundle, device="cpu") as backend,
        pytest.raises(BackendError, match=r"takes uint8 \(N, 48, 48, 3\)"),
    ):
        backend.run(wrong)


def test_what_torch_says_of_a_failure_is_one_sentence(bundle, monkeypatch):
    with CudaReference(bundle, device="cpu") as backend:

        def fail(views):
            raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

        monkeypatch.setattr(backend, "_network", fail)
        with pytest.raises(BackendError, match=r"failed on \(1, 48, 48, 3\): .* out of memory$"):
            backend.run(views(1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("make", [CudaReference, TorchDeviceNetwork])
def test_without_a_gpu_it_says_so(bundle, make):
    with pytest.raises(BackendError, match="finds no NVIDIA GPU here; install torch with CUDA"):
        make(bundle)


def test_on_the_device_it_reads_and_writes_the_addresses_it_is_given(bundle, monkeypatch):
    # The driver seam: borrowed streams and memory, here on the CPU.
    cpu = reference_network(bundle, precision="fp32", device="cpu")
    monkeypatch.setattr(torch_reference, "reference_network", lambda *_, **__: cpu)
    monkeypatch.setattr(torch_reference, "_device_name", lambda _: "NVIDIA Test 1000")
    monkeypatch.setattr(torch_reference, "_borrowed", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: torch.no_grad())
    memory = {
        1: torch.tensor(views(2)),
        2: torch.zeros(2, 6, 6),
        3: torch.zeros(2, 6, 6),
    }

    def at(address, shape, kind):
        assert memory[address].shape == shape
        assert kind == ("|u1" if address == 1 else "<f4")
        return memory[address]

    monkeypatch.setattr(torch_reference, "_at", at)
    network = TorchDeviceNetwork(bundle, precision="fp32")
    assert network.name == "torch NVIDIA Test 1000 fp32"
    network.bound(views=1, score_map=2, attention=3)(2, SimpleNamespace(handle=77))
    with OnnxRuntimeBackend(bundle) as oracle:
        expected = oracle.run(views(2))
    np.testing.assert_allclose(memory[2].numpy(), expected["score_map"], atol=1e-3)
    np.testing.assert_allclose(memory[3].numpy(), expected["attention"], atol=1e-3)
