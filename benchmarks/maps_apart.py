"""What it saves to convolve each feature map on its own grid (train/apart.py), on a CPU.

    python -m benchmarks.maps_apart --weights resnet50.safetensors --out maps_apart.json

A ResNet-50 with layer2 and layer3, averaged, L2-normalised and projected to 256 channels, exported
twice: with the maps stacked first, and apart. ONNX Runtime runs both in turns with one thread; what
counts is the time of the processor, so that other work on the machine matters less.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own custom)
from torch import Tensor, nn

from benchmarks.machine import described, write_result
from train.apart import Apart, lengths, stacked
from train.backbones import Backbone
from train.backbones.resnet import ResNet
from train.backbones.resnet import open as open_resnet
from train.export.graph import onnx_graph
from train.network import Maps, Network, local_mean
from train.weights import read_weights

_SIDE, _CHANNELS = 224, 256


class Projected(Network):
    """The largest value of each patch, projected; both outputs are the same."""

    def __init__(self, backbone: Backbone, *, apart: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.project: nn.Module = nn.Conv2d(sum(backbone.channels), _CHANNELS, 1, bias=False)
        self._apart = apart

    def forward(self, views: Tensor) -> Maps:
        x = views.to(torch.float32).permute(0, 3, 1, 2) / 255
        maps = [local_mean(each) for each in self.backbone(x)]
        if isinstance(self.project, Apart):
            found = self.project(maps) / lengths(maps)
        else:
            found = self.project(F.normalize(stacked(maps), dim=1))
        largest = found.amax(dim=1)
        return Maps(largest, largest + 0)

    def prepare_export(self, *, half: bool) -> None:
        self.backbone.prepare_export(half=half)
        if self._apart:
            self.project = Apart(self.project, self.backbone.channels, half=half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="of the ResNet-50; without them random ones")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sessions, nodes = {}, {}
    for name in ("stacked", "apart"):
        torch.manual_seed(0)
        backbone = open_resnet(ResNet(stages=("layer2", "layer3")), side=_SIDE)
        if options.weights:
            backbone.load(read_weights(options.weights))
        network = Projected(backbone, apart=name == "apart").eval()
        data = onnx_graph(network, network.spec(_SIDE))
        nodes[name] = len(onnx.load_model_from_string(data).graph.node)
        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = 1
        sessions[name] = onnxruntime.InferenceSession(data, session)
    views = np.random.default_rng(0).integers(0, 256, (1, _SIDE, _SIDE, 3), dtype=np.uint8)
    answers = {name: each.run(None, {"views": views})[0] for name, each in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(options.repeats):
        for name, each in sessions.items():
            begun = time.process_time()
            each.run(None, {"views": views})
            times[name].append(time.process_time() - begun)
    apart = np.abs(answers["apart"] - answers["stacked"]).max() / np.abs(answers["stacked"]).max()
    found = {
        name: {"p50_cpu_ms": 1e3 * float(np.median(each)), "nodes": nodes[name]}
        for name, each in times.items()
    }
    results = {
        **described(),
        "repeats": options.repeats,
        **found,
        "saved": 1 - found["apart"]["p50_cpu_ms"] / found["stacked"]["p50_cpu_ms"],
        "largest_difference": float(apart),
    }
    write_result(results, options.out)


if __name__ == "__main__":
    main()
