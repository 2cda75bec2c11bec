"""φ: a ResNet trunk (He et al. 2016) with torchvision's parameter names, and its weights."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from engine.errors import ConfigurationError
from train.profile import Architecture, Form, Stage

_BLOCKS: Final[dict[Architecture, tuple[int, int, int, int]]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet50": (3, 4, 6, 3),
}
_STAGES: Final = ("layer1", "layer2", "layer3", "layer4")
_WIDTHS: Final = (64, 128, 256, 512)

TORCHVISION_FILES: Final[dict[Architecture, str]] = {
    "resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "resnet50": "https://download.pytorch.org/models/resnet50-0676ba61.pth",
}
"""ImageNet-V1 weights as torchvision publishes them; any checkpoint of that form will do."""


class _BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (ResNet-18)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, *, eps: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(channels, width, stride, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut: Tensor = self.downsample(x)
        return torch.relu(out + shortcut)


class _Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 and a shortcut (ResNet-50); `form` says which one takes the stride."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, *, eps: float, form: Form) -> None:
        super().__init__()
        first, second = (stride, 1) if form == "v1" else (1, stride)
        self.conv1 = nn.Conv2d(channels, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, second, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps)
        self.conv3 = nn.Conv2d(width, width * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * 4, eps)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(channels, width * 4, stride, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut: Tensor = self.downsample(x)
        return torch.relu(out + shortcut)


def _shortcut(channels: int, out: int, stride: int, *, eps: float) -> nn.Module:
    if stride == 1 and channels == out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out, eps))


class Trunk(nn.Module):
    """A ResNet cut after the deepest of `stages`; gives the feature map of each of them.

    Input float32 `(N, 3, H, W)`, standardised RGB; layer2, layer3 and layer4 answer with strides
    8, 16 and 32. `channels` are theirs, in order.
    """

    def __init__(self, architecture: Architecture, stages: tuple[Stage, ...], form: Form) -> None:
        super().__init__()
        # Weights of the v1 form come from Keras, whose BatchNorm has this ε.
        eps = 1.001e-5 if form == "v1" else 1e-5
        self.stages = stages
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64, eps)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        built: dict[str, int] = {}
        for name, width, blocks in zip(_STAGES, _WIDTHS, _BLOCKS[architecture], strict=True):
            layers: list[nn.Module] = []
            for block in range(blocks):
                stride = 2 if block == 0 and name != "layer1" else 1
                if architecture == "resnet18":
                    layers.append(_BasicBlock(channels, width, stride, eps=eps))
                    channels = width
                else:
                    layers.append(_Bottleneck(channels, width, stride, eps=eps, form=form))
                    channels = width * 4
            self.add_module(name, nn.Sequential(*layers))
            built[name] = channels
            if name == stages[-1]:
                break
        self.layers = tuple(built)
        self.channels = tuple(built[stage] for stage in stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        features = []
        for name in self.layers:
            x = self.get_submodule(name)(x)
            if name in self.stages:
                features.append(x)
        return features


@dataclass(frozen=True, kw_only=True)
class PretrainedWeights:
    """A checkpoint read from `source`: tensors by torchvision name, fp32.

    `form` is where its strides sit. `fused` says that its BatchNorm had been folded into the
    convolutions: `unfold` it before training.
    """

    source: str
    tensors: Mapping[str, Tensor]
    form: Form
    fused: bool

    @property
    def architecture(self) -> Architecture:
        """Whose blocks these are; `load_pretrained` says what does not fit nevertheless."""
        return "resnet50" if "layer1.0.conv3.weight" in self.tensors else "resnet18"

    @cached_property
    def sha256(self) -> str:
        """A hash of the tensors by name, whatever file format held them."""
        seen = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            seen.update(f"{name} {tuple(tensor.shape)} ".encode())
            seen.update(tensor.contiguous().numpy().tobytes())
        return seen.hexdigest()


def read_weights(
    path: Path, *, form: Form | None = None, option: str = "--backbone-weights"
) -> PretrainedWeights:
    """Read a torchvision checkpoint, `.pth`/`.pt` or `.safetensors`; nothing in it is executed.

    `form=None` believes the `stride_in` that a safetensors header may carry, else assumes
    torchvision's v1.5: shapes are the same in both forms, so the tensors themselves cannot tell.
    Raises `ConfigurationError` in the name of the `option` that gave the path.
    """
    metadata: dict[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            tensors = safetensors.torch.load_file(path)
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the two readers share no base class
        raise ConfigurationError(
            option,
            str(path),
            f"cannot be read as a checkpoint ({str(error).splitlines()[0]}); "
            "give a .pth or .safetensors file with torchvision's parameter names",
        ) from error
    if not (isinstance(tensors, dict) and all(isinstance(t, Tensor) for t in tensors.values())):
        raise ConfigurationError(
            option, str(path), "holds no plain dictionary of tensors (a state_dict)"
        )
    stated: Form = "v1" if metadata.get("stride_in", "").startswith("conv1") else "v1.5"
    return PretrainedWeights(
        source=path.name,
        tensors={name: tensor.float() for name, tensor in tensors.items()},
        form=form or stated,
        fused=_is_fused(tensors),
    )


def load_pretrained(trunk: Trunk, weights: PretrainedWeights) -> None:
    """Copy `weights` into `trunk`; raises `ConfigurationError` naming what does not fit.

    Stages deeper than the trunk's and the classifier `fc` are left out silently.
    """
    expected = {
        name: tensor
        for name, tensor in trunk.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    deeper = tuple(f"{stage}." for stage in _STAGES if stage not in trunk.layers)
    offered = {
        name: tensor
        for name, tensor in weights.tensors.items()
        if not name.endswith("num_batches_tracked") and not name.startswith((*deeper, "fc."))
    }
    lacking_stages = [
        stage for stage in trunk.layers if not any(name.startswith(stage) for name in offered)
    ]
    if lacking_stages:
        have = [s for s in _STAGES if any(n.startswith(f"{s}.") for n in weights.tensors)]
        raise ConfigurationError(
            "--backbone-weights",
            weights.source,
            f"has no {', '.join(lacking_stages)}; "
            + (
                f"choose --stage {have[-1]} or give a complete checkpoint"
                if have
                else "it is not a ResNet checkpoint with torchvision's names"
            ),
        )
    faults = [
        *_named("missing", expected.keys() - offered.keys()),
        *_named("unexpected", offered.keys() - expected.keys()),
        *_named(
            "of another shape",
            {n for n in expected.keys() & offered.keys() if expected[n].shape != offered[n].shape},
        ),
    ]
    if faults:
        raise ConfigurationError(
            "--backbone-weights",
            weights.source,
            f"does not fit this backbone ({'; '.join(faults)}); is --backbone right?",
        )
    trunk.load_state_dict(offered, strict=False)


def unfold(trunk: Trunk, look: Callable[[], object]) -> None:
    """Give every BatchNorm of `trunk` the statistics of what it sees in `look`, a run of the trunk.

    γ and β change with them, so that the trunk computes what it did, up to rounding. Where
    BatchNorm was folded into the convolutions its mean is 0 and its variance 1 whatever comes, and
    the first batch that trains would put its own in their place: another network.
    """
    norms = [part for part in trunk.modules() if isinstance(part, nn.BatchNorm2d)]
    seen: dict[nn.Module, Tensor] = {}

    def keep(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[norm] = torch.stack([f(inputs[0], dim=(0, 2, 3)) for f in (torch.mean, torch.var)])

    hooks = [norm.register_forward_pre_hook(keep) for norm in norms]
    training = trunk.training
    trunk.eval()
    with torch.no_grad():
        look()
        for norm in norms:
            mean, variance = seen[norm]
            assert norm.running_mean is not None
            assert norm.running_var is not None
            gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            norm.bias.add_(gain * (mean - norm.running_mean))
            norm.weight.copy_(gain * torch.sqrt(variance + norm.eps))
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
    trunk.train(training)
    for hook in hooks:
        hook.remove()


def initialise(module: nn.Module) -> None:
    """He initialisation (normal, fan-out, ReLU) of all convolutions; BatchNorm γ=1, β=0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def _is_fused(tensors: Mapping[str, Tensor]) -> bool:
    means = [tensor for name, tensor in tensors.items() if name.endswith("running_mean")]
    return bool(means) and all(not mean.any() for mean in means)


def _named(fault: str, names: set[str]) -> list[str]:
    shown = sorted(names)[:5]
    rest = len(names) - len(shown)
    return [f"{fault}: {', '.join(shown)}" + (f" and {rest} more" if rest else "")] if names else []
