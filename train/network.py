"""ATAC-Net, top to bottom.

    views (N, H, W, 3) uint8 → standardise → φ trunk → σ attention → F → τ → score map   (Eq 3, 7)
                                            │                       └→ mean of ReLU(F) → attention
                                            └→ memory of good parts → added to the score map (line)

The network is run twice with the same weights: on the whole view, then on the view of the
attention box. What lies between, from the attention map to the box and from the frame to the
second view, is `engine.attention` and `engine.view`; what comes after is `engine.score`.
"""

from collections.abc import Callable
from typing import Final, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own custom)
from torch import Tensor, nn

from engine.backends.base import Outputs
from engine.frame import Pixels
from train.backbone import Trunk, initialise
from train.profile import Profile

_STANDARDISE: Final = {
    # The constants that supplement §2 prints. It calls them ImageNet's; they are CLIP's (D25).
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Maps(NamedTuple):
    """What a head says of N views: float32 `(N, h, w)`; `attention` is not negative.

    A `supervised` attention is the chance, 0 … 1, that a cell is defective.
    """

    score_map: Tensor
    attention: Tensor


class SelfAttention(nn.Module):
    """SAGAN's self-attention (Zhang et al. 2019) over the cells of a map, as a residual (D10).

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


class CellResidual(nn.Module):
    """One more 1×1 convolution of each cell of a map, rectified, as a residual.

    Each of `heads` equal parts of the channels is convolved alone.
    """

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(channels, channels, 1, groups=heads)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + torch.relu(self.convolve(x))
        return y


def _refinement(profile: Profile) -> nn.Module:
    width = profile.heads * profile.attention_channels
    match profile.refine:
        case "none":
            return nn.Identity()
        case "residual":
            return CellResidual(width, profile.heads)
        case "self_attention":
            return SelfAttention(width, profile.query_channels)


class AttentionHead(nn.Module):
    """σ and τ of the paper: trunk features → score map and attention map.

    Several heads lie beside each other in the channels and share nothing but what they see. They
    answer by the mean of their magnitudes, and of their attentions.
    """

    def __init__(self, channels: int, profile: Profile) -> None:
        super().__init__()
        heads = profile.heads
        width = heads * profile.attention_channels
        # σ(·; θ_a): "convolution layers and self-attention layers" of 64 channels (D10)
        self.convolve = nn.Conv2d(
            channels, width, profile.kernel, padding=profile.kernel // 2, bias=False
        )
        self.normalise = nn.BatchNorm2d(width)
        self.refine = _refinement(profile)
        # τ(·; θ_s) (D11)
        self.score = nn.Conv2d(width, heads, 1, groups=heads)
        # S of spec §5.3, in place of the mean of F
        supervised = profile.attention == "supervised"
        self.locate = nn.Conv2d(width, heads, 1, groups=heads) if supervised else None

    def forward(self, features: Tensor) -> Maps:
        score_maps, attentions = self._answers(features)
        if score_maps.shape[1] > 1:
            score_maps = score_maps.abs().mean(dim=1, keepdim=True)
            attentions = attentions.mean(dim=1, keepdim=True)
        return Maps(score_maps.squeeze(1), attentions.squeeze(1))

    def each(self, features: Tensor) -> Maps:
        """What every head says of N views: `(heads · N, h, w)`, head after head."""
        return Maps(*(maps.transpose(0, 1).flatten(0, 1) for maps in self._answers(features)))

    def _answers(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Score maps and attentions, both `(N, heads, h, w)`."""
        x = torch.relu(self.normalise(self.convolve(features)))  # (N, heads · 64, h, w)
        f = self.refine(x)  # F = σ(φ(x)): (N, heads · 64, h, w)
        score_maps = self.score(f)  # a_mp = τ(F)   Eq 3 and 7
        if self.locate is None:  # C_attn   Eq 4; rectified, D2
            of_heads = torch.relu(f).chunk(score_maps.shape[1], dim=1)
            attentions = torch.cat([part.mean(dim=1, keepdim=True) for part in of_heads], dim=1)
        else:
            attentions = torch.sigmoid(self.locate(f).float())  # S
        return score_maps, attentions


class Memory(nn.Module):
    """How far each cell is from the nearest of many good ones; `train.memory` fills it in.

    The scale is 0 until then.
    """

    scale: Tensor

    def __init__(self, channels: int, profile: Profile) -> None:
        super().__init__()
        width, count = profile.prototype_channels, profile.prototypes
        self.project = nn.Conv2d(channels, width, 1, bias=False)
        # |c|² − 2 x·c for each prototype c of a projected cell x
        self.compare = nn.Conv2d(width, count, 1)
        self.register_buffer("scale", torch.zeros(1))
        self.unit_cells = profile.unit_cells
        self.requires_grad_(requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """Distances `(N, h, w)` of features `(N, C, h, w)`, scaled; not negative."""
        x = self.project(compared(features, unit_cells=self.unit_cells))  # (N, d, h, w)
        nearest = self.compare(x).amin(dim=1) + (x * x).sum(dim=1)  # |x − c|²: (N, h, w)
        y: Tensor = self.scale * torch.sqrt(torch.relu(nearest))
        return y

    def hold(self, project: Tensor, centres: Tensor, *, scale: float) -> None:
        """Take a projection `(d, C)` and prototypes `(count, d)`."""
        self.load_state_dict(
            {
                "project.weight": project[:, :, None, None],
                "compare.weight": -2 * centres[:, :, None, None],
                "compare.bias": (centres * centres).sum(dim=1),
                "scale": torch.full((1,), scale),
            }
        )


class AtacNet(nn.Module):
    """The whole scorer γ of one view, standardisation inside so that no caller gets it wrong."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, profile: Profile, head: Callable[[int, Profile], nn.Module] = AttentionHead
    ) -> None:
        super().__init__()
        mean, std = _STANDARDISE[profile.standardise]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.trunk = Trunk(profile.architecture, profile.stages, profile.form)  # φ
        self.head = head(sum(self.trunk.channels), profile)  # σ and τ
        self.memory = Memory(sum(self.trunk.channels), profile) if profile.prototypes else None
        self.frozen = profile.freeze
        self._local_mean = profile.local_mean
        initialise(self)
        if profile.start == "fan_in":
            for part in self.head.modules():
                if isinstance(part, nn.Conv2d):
                    part.reset_parameters()  # PyTorch's own: uniform within 1/√(fan-in)
        self.trunk.requires_grad_(not self.frozen)
        self.train()

    def features(self, views: Tensor) -> Tensor:
        """φ(x): uint8 RGB `(N, H, W, 3)` → the stages' maps on one grid, float32 `(N, C, h, w)`."""
        x = views.to(torch.float32).permute(0, 3, 1, 2) / 255  # (N, 3, H, W) in [0, 1]
        x = (x - self.mean) / self.std
        x = x.to(self.trunk.conv1.weight.dtype)  # half in an fp16 export
        maps = [feature.to(torch.float32) for feature in self.trunk(x)]
        return stacked([local_mean(m) for m in maps] if self._local_mean else maps)

    def forward(self, views: Tensor) -> Maps:
        features = self.features(views)
        maps: Maps = self.head(features)
        if self.memory is None:
            return maps
        # Eq 8 counts magnitudes; two of them add up without cancelling each other.
        return maps._replace(score_map=maps.score_map.abs() + self.memory(features))

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  (PyTorch's signature)
        """Switch to training; a frozen trunk keeps its BatchNorm statistics (D22)."""
        super().train(mode)
        if self.frozen:
            self.trunk.eval()
        return self


def compared(features: Tensor, *, unit_cells: bool) -> Tensor:
    """Features `(N, C, h, w)` as a memory compares their cells: of length 1, or as they are."""
    return F.normalize(features, dim=1) if unit_cells else features


def local_mean(feature: Tensor) -> Tensor:
    """Each cell of `(N, C, h, w)` averaged with its neighbours; a corner has three."""
    return F.avg_pool2d(feature, 3, stride=1, padding=1, count_include_pad=False)


def stacked(features: list[Tensor]) -> Tensor:
    """Feature maps of several stages as one, on the grid of the first and finest (D9)."""
    first, *deeper = features
    size = first.shape[-2:]
    return torch.cat(
        [first, *(F.interpolate(f, size, mode="bilinear", align_corners=False) for f in deeper)],
        dim=1,
    )


class TorchBackend:
    """The torch reference as an `engine.backends.Backend`: what every export is compared with."""

    def __init__(self, network: AtacNet) -> None:
        self._network = network
        self._device = network.mean.device

    @property
    def name(self) -> str:
        return f"torch {self._device.type} fp32"

    @property
    def workers(self) -> int:
        return 1

    def run(self, views: Pixels) -> Outputs:
        with torch.inference_mode():
            # Copied: views may be read-only, which torch cannot express.
            maps = self._network(torch.tensor(views, device=self._device))
        return {name: np.asarray(each.cpu().numpy()) for name, each in maps._asdict().items()}

    def __enter__(self) -> Self:
        self._training = self._network.training
        self._network.eval()
        return self

    def __exit__(self, *_: object) -> None:
        self._network.train(self._training)
