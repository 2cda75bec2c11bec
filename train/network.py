"""ATAC-Net, top to bottom.

    views (N, H, W, 3) uint8 → standardise → φ backbone → σ attention → F → τ → score map
                                              │                         └→ attention
                                              └→ memory bank → added to the score map (line)

The network runs twice with the same weights: on the whole view, then on the view of the attention
box. What lies between, from the attention map to the box and from the frame to the second view, is
`engine.attention` and `engine.view`; what comes after is `engine.score`.
"""

from collections.abc import Callable
from typing import Annotated, ClassVar, Final, Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own custom)
from pydantic import Field
from torch import Tensor, nn

from engine.attention import CropSpec
from engine.backends.base import Outputs
from engine.frame import Pixels
from engine.methods import NetworkSpec
from engine.methods.atac import AtacMethod
from engine.score import ScoreSpec
from engine.spec import spec
from engine.view import ViewSpec
from train.apart import Apart, stacked
from train.backbones import Backbone, fold_batch_norm, initialise
from train.memory_bank import MemoryBank, PrototypeDistance

IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's colours in [0, 1], which its backbones expect."""
Standardisation = Literal["clip", "imagenet"]
_STANDARDISE: Final = {
    # The paper's supplement prints these constants and calls them ImageNet's; they are CLIP's.
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": IMAGENET,
}
Count = Annotated[int, Field(ge=1)]


class Maps(NamedTuple):
    """What a network says of N views: float32 `(N, h, w)`; `attention` is not negative.

    A supervised attention is the probability, 0 … 1, that a patch is defective.
    """

    score_map: Tensor
    attention: Tensor


class Network(nn.Module):
    """What a recipe trains: uint8 RGB views `(N, side, side, 3)` → a named tuple of tensors.

    They are the outputs that its method knows by these names; standardisation is inside.

    In an int8 export the layers whose parameters begin with one of `exact_in_int8` stay in fp32,
    and so does all that follows them; of the others `int8_operators` are quantised.
    """

    exact_in_int8: ClassVar[tuple[str, ...]] = ()
    int8_operators: tuple[str, ...] = ("Conv", "Relu", "Add", "MaxPool")

    def prepare_export(self, *, half: bool) -> None:
        """Fold BatchNorm; with `half`, compute in fp16 wherever this leaves decisions alone."""
        del half  # a network that does not know where it may stays in fp32
        fold_batch_norm(self)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def spec(self, side: int) -> NetworkSpec:
        """Its input and outputs for views of `side` pixels."""
        with TorchBackend(self) as backend:
            found = backend.run(np.zeros((1, side, side, 3), np.uint8))
        return NetworkSpec(
            side=side, outputs={name: each.shape[1:] for name, each in found.items()}
        )


@spec
class ConvolutionHead:
    """σ as convolutions: `heads` side by side, each of `channels` channels and initialised alone.

    Their outputs are averaged, which reduces the variance from initialisation when few defects are
    labelled. `kernel` is the side of the first convolution; one more of each patch follows, added
    to what it saw.
    """

    type: Literal["convolution"] = "convolution"
    kernel: Literal[1, 3] = 1
    channels: Count = 64
    heads: Count = 4


@spec
class SelfAttentionHead:
    """σ as the paper has it: a convolution, then SAGAN's self-attention (docs/method.md)."""

    type: Literal["self_attention"] = "self_attention"
    kernel: Literal[1, 3] = 3
    channels: Count = 64
    query_channels: Count = 8


class SelfAttention(nn.Module):
    """SAGAN's self-attention (Zhang et al. 2019) over the patches of a map, as a residual.

    The residual's scale starts at 0: at first the block passes its input through.
    """

    def __init__(self, channels: int, query_channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, query_channels, 1)
        self.key = nn.Conv2d(channels, query_channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2).transpose(1, 2)  # (N, h·w, q)
        key = self.key(x).flatten(2)  # (N, q, h·w)
        value = self.value(x).flatten(2).transpose(1, 2)  # (N, h·w, c)
        weights = torch.softmax(query @ key, dim=-1)  # (N, h·w, h·w), rows sum to 1
        attended = (weights @ value).transpose(1, 2).reshape(x.shape)  # (N, c, h, w)
        y: Tensor = x + self.scale * attended
        return y


class PatchResidual(nn.Module):
    """One more 1×1 convolution of each patch of a map, rectified, as a residual.

    Each of `heads` equal parts of the channels is convolved alone.
    """

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(channels, channels, 1, groups=heads)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + torch.relu(self.convolve(x))
        return y


class AttentionHead(nn.Module):
    """σ and τ of the paper: backbone features → score map and attention map.

    Several heads lie side by side in the channels and share nothing but their input. Their answer
    is the mean of their magnitudes, and of their attentions. With `supervised` an output of its own
    gives the attention, which masks teach; else it is the mean of σ's rectified features.
    """

    def __init__(
        self, channels: int, settings: ConvolutionHead | SelfAttentionHead, *, supervised: bool
    ) -> None:
        super().__init__()
        heads = settings.heads if isinstance(settings, ConvolutionHead) else 1
        width, kernel = heads * settings.channels, settings.kernel
        # σ(·; θ_a): "convolution layers and self-attention layers" of 64 channels
        self.convolve = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
        self.normalise = nn.BatchNorm2d(width)
        self.refine: nn.Module
        if isinstance(settings, SelfAttentionHead):
            self.refine = SelfAttention(width, settings.query_channels)
        else:
            self.refine = PatchResidual(width, heads)
        self.score = nn.Conv2d(width, heads, 1, groups=heads)  # τ(·; θ_s)
        self.locate = nn.Conv2d(width, heads, 1, groups=heads) if supervised else None

    def forward(self, features: Tensor | list[Tensor]) -> Maps:
        score_maps, attentions = self._answers(features)
        if score_maps.shape[1] > 1:
            score_maps = score_maps.abs().mean(dim=1, keepdim=True)
            attentions = attentions.mean(dim=1, keepdim=True)
        return Maps(score_maps.squeeze(1), attentions.squeeze(1))

    def each(self, features: Tensor) -> Maps:
        """What every head says of N views: `(heads · N, h, w)`, head after head."""
        return Maps(*(maps.transpose(0, 1).flatten(0, 1) for maps in self._answers(features)))

    def _answers(self, features: Tensor | list[Tensor]) -> tuple[Tensor, Tensor]:
        """Score maps and attentions, both `(N, heads, h, w)`."""
        x = torch.relu(self.normalise(self.convolve(features)))  # (N, heads · 64, h, w)
        # F = σ(φ(x)): (N, heads · 64, h, w); what is summed over it decides, and is exact
        f = self.refine(x).to(self.score.weight.dtype)
        score_maps = self.score(f)  # a_mp = τ(F)   Eq 3 and 7
        if self.locate is None:  # C_attn   Eq 4; rectified
            of_heads = torch.relu(f).chunk(score_maps.shape[1], dim=1)
            attentions = torch.cat([part.mean(dim=1, keepdim=True) for part in of_heads], dim=1)
        else:
            attentions = torch.sigmoid(self.locate(f).float())
        return score_maps, attentions


class AtacNet(Network):
    """The whole scorer γ of one view.

    Args:
        backbone: φ.
        head: Makes σ and τ for this number of feature channels.
        standardise: The constants for views, unless the backbone's weights have their own.
        freeze: Keep the backbone and its BatchNorm statistics as they are.
        local_mean: Average each patch of a feature map with its neighbours first.
        memory_bank: A memory bank beside the head; `train.memory_bank.fill` fills it.
        initialisation: `he` as in the paper, where first scores are as large as the margin and it
            takes thousands of steps to bring those of good parts down; or `fan_in`, which begins
            near zero.
    """

    exact_in_int8: ClassVar[tuple[str, ...]] = (
        "head.refine.",
        "head.score.",
        "head.locate.",
        "memory_bank.",
    )  # cheap, and they decide box and score
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        head: Callable[[int], nn.Module],
        *,
        standardise: Standardisation,
        freeze: bool = False,
        local_mean: bool = False,
        memory_bank: MemoryBank | None = None,
        initialisation: Literal["he", "fan_in"] = "he",
    ) -> None:
        super().__init__()
        mean, std = backbone.standardisation or _STANDARDISE[standardise]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        channels = sum(backbone.channels)
        self.backbone = backbone  # φ
        self.head = head(channels)  # σ and τ
        self.memory_bank = None if memory_bank is None else PrototypeDistance(channels, memory_bank)
        self.frozen = freeze
        self.int8_operators = backbone.int8_operators
        self._local_mean = local_mean
        self._apart = False
        backbone.initialise()
        initialise(self.head)
        if self.memory_bank is not None:
            initialise(self.memory_bank)
        if initialisation == "fan_in":
            for part in self.head.modules():
                if isinstance(part, nn.Conv2d):
                    part.reset_parameters()  # PyTorch's own: uniform within 1/√(fan-in)
        backbone.requires_grad_(not freeze)
        self.train()

    def maps(self, views: Tensor) -> list[Tensor]:
        """φ(x): uint8 RGB `(N, H, W, 3)` → feature maps, each on its own grid."""
        x = views.to(torch.float32).permute(0, 3, 1, 2) / 255  # (N, 3, H, W) in [0, 1]
        x = (x - self.mean) / self.std
        maps: list[Tensor] = self.backbone.computed(x) if self._apart else self.backbone(x)
        return [local_mean(m) for m in maps] if self._local_mean else maps

    def features(self, views: Tensor) -> Tensor:
        """φ(x) on one grid: float32 `(N, C, h, w)`."""
        return stacked(self.maps(views))

    def forward(self, views: Tensor) -> Maps:
        features = self.maps(views) if self._apart else self.features(views)
        maps: Maps = self.head(features)
        if self.memory_bank is None:
            return maps
        # Eq 8 counts magnitudes; two of them add up without cancelling each other.
        return maps._replace(score_map=maps.score_map.abs() + self.memory_bank(features))

    def prepare_export(self, *, half: bool) -> None:
        """As `Network.prepare_export`: what is summed up last stays in fp32, since it decides.

        1×1 convolutions see each map on its own grid, which is the same with less work.
        """
        fold_batch_norm(self.head)
        self.backbone.prepare_export(half=half)
        first = getattr(self.head, "convolve", None)
        if not isinstance(first, nn.Conv2d) or first.kernel_size != (1, 1):
            return
        self._apart = True
        channels = self.backbone.channels
        self.head.add_module("convolve", Apart(first, channels, half=half))
        if self.memory_bank is not None:
            project = Apart(self.memory_bank.project, channels, half=half)
            self.memory_bank.add_module("project", project)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  (PyTorch's signature)
        """Switch to training; a frozen backbone keeps its BatchNorm statistics."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self


def local_mean(feature: Tensor) -> Tensor:
    """Each patch of `(N, C, h, w)` averaged with its neighbours; a corner has three."""
    return F.avg_pool2d(feature, 3, stride=1, padding=1, count_include_pad=False)


def atac_method(
    network: Network,
    view: ViewSpec,
    crop: CropSpec | None = None,
    score: ScoreSpec | None = None,
) -> AtacMethod:
    """How the engine runs `network`: two passes over views, boxes and scores of these kinds."""
    return AtacMethod(
        network=network.spec(view.side),
        view=view,
        crop=crop or CropSpec(),
        score=score or ScoreSpec(),
    )


class TorchBackend:
    """The torch reference as an `engine.backends.Backend`: what every export is compared with."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._device = network.device

    @property
    def name(self) -> str:
        return f"torch {self._device.type} fp32"

    @property
    def workers(self) -> int:
        return 1

    def run(self, views: Pixels) -> Outputs:
        with torch.inference_mode():
            # Copied: views may be read-only, which torch cannot express.
            found = self._network(torch.tensor(views, device=self._device))
        return {name: np.asarray(each.cpu().numpy()) for name, each in found._asdict().items()}

    def __enter__(self) -> Self:
        self._training = self._network.training
        self._network.eval()
        return self

    def __exit__(self, *_: object) -> None:
        self._network.train(self._training)
