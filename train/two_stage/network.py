"""The two-stage network, top to bottom.

    views (N, H, W, 3) uint8 → standardise → encoder ─┬→ z → decoder ─┬→ reconstruction
                                                      ├→ detail ──────┴→ attention A_gen ─┐
                                                      └→ F_img ── F_nor = F_img ∘ A_gen ◀─┘
                                                                    └→ ADGAN's discriminator → score

Stage one trains the attention network against a discriminator of images beside attention maps;
stage two, with the attention network frozen, trains ADGAN on F_nor. Only what gives score and
attention is in an exported graph.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own custom)
from torch import Tensor, nn

from engine.methods.two_stage import TwoStageMethod
from engine.view import ViewSpec
from train.apart import stacked
from train.backbones import Backbone, fold_batch_norm
from train.network import IMAGENET, Network
from train.two_stage.losses import attended_features

MOST_DECODED: Final = 16
"""Four transposed convolutions, each of which may double height and width."""
_LEAST_SIDE: Final = 4  # of the last map of a discriminator, as in DCGAN
_LEAK: Final = 0.2
_FIRST_LOG_VARIANCE: Final = -4.0  # else noise hides what z says for hundreds of steps


class Generated(NamedTuple):
    """What the attention network makes of N images: all float32, `H` and `W` those of the images.

    `reconstruction` `(N, 3, H, W)` and `attention` `(N, 1, H, W)` are in [0, 1]. `mean` and
    `log_variance` `(N, Z, h, w)` are of q(z|x).
    """

    reconstruction: Tensor
    attention: Tensor
    mean: Tensor
    log_variance: Tensor


class Found(NamedTuple):
    """What the whole network says of N views: `score` `(N, 1)`, `attention` `(N, H, W)` in [0, 1].

    The score is -log D(F_nor), so it is not negative, and grows as the part looks less normal.
    """

    score: Tensor
    attention: Tensor


class Decoder(nn.Sequential):
    """Four transposed convolutions (DCGAN's), each followed by BatchNorm and ReLU.

    Together they enlarge by `factor`, 16 or less; those that need not double come first.
    """

    def __init__(self, channels: int, widths: Sequence[int], factor: int = MOST_DECODED) -> None:
        layers: list[nn.Module] = []
        doubling = round(math.log2(factor))
        for number, width in enumerate(widths):
            layers += (
                nn.ConvTranspose2d(channels, width, 4, 2, 1, bias=False)
                if number >= len(widths) - doubling
                else nn.ConvTranspose2d(channels, width, 3, 1, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )
            channels = width
        super().__init__(*layers)


class OutputPath(nn.Module):
    """Three convolutions from the decoder's feature map to an image in [0, 1].

    Without BatchNorm the attention map sometimes ended as the same value everywhere.
    """

    def __init__(self, channels: int, width: int, out: int) -> None:
        super().__init__()
        self.convolve = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(_LEAK),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(_LEAK),
            nn.Conv2d(width, out, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.convolve(x).float())


class Detail(nn.Module):
    """What the encoder found around each place, brought to the size of the view.

    z is made to say what the reconstruction needs. What it leaves out is often all that tells a
    defect from a good part.
    """

    def __init__(self, encoded: int, channels: int, out: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.convolve = nn.Sequential(
            nn.Conv2d(encoded, channels, 1),
            nn.LeakyReLU(_LEAK),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(_LEAK),
            nn.Conv2d(channels, out, 1),
        )

    def forward(self, encoded: Tensor) -> Tensor:
        found = self.convolve(around(encoded))
        return F.interpolate(found, scale_factor=self.factor, mode="bilinear", align_corners=False)


class AttentionNetwork(nn.Module):
    """The generator of stage one: a variational autoencoder with a second path for attention.

    Args:
        backbone: The encoder; its maps are stacked on the grid of the finest.
        latent: Channels of z.
        widths: Channels after each transposed convolution.
        detail: Channels of what the attention map is made of beside the decoder's map; 0: that
            alone, as in the paper.
        path: Channels between the convolutions of a path.
        freeze: Keep the encoder and its BatchNorm statistics as they are.
    """

    mean: Tensor
    std: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        latent: int,
        widths: Sequence[int],
        detail: int,
        path: int,
        freeze: bool,
    ) -> None:
        super().__init__()
        mean, std = backbone.standardisation or IMAGENET
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        channels = sum(backbone.channels)
        self.register_buffer("centre", torch.zeros(1, channels, 1, 1))
        self.register_buffer("scale", torch.ones(1, channels, 1, 1))
        backbone.initialise()
        self.backbone = backbone.requires_grad_(not freeze)
        self.frozen = freeze
        self.latent_mean = nn.Conv2d(channels, latent, 1)
        self.latent_log_variance = nn.Conv2d(channels, latent, 1)
        assert self.latent_log_variance.bias is not None
        nn.init.constant_(self.latent_log_variance.bias, _FIRST_LOG_VARIANCE)
        self.decoder = Decoder(latent, widths, backbone.strides[0])
        self.reconstruct = OutputPath(widths[-1], path, 3)
        self.detail = Detail(channels, detail, widths[-1], backbone.strides[0]) if detail else None
        self.attend = OutputPath(widths[-1] * (2 if detail else 1), path, 1)
        self.decoder.apply(dcgan_initialised)

    def standardise(self, images: Tensor) -> None:
        """Let each channel of the encoder's maps have mean 0 and deviation 1 over these images."""
        with torch.no_grad():
            self.centre.zero_()
            self.scale.fill_(1)
            encoded = self.encoded(images).float()
            self.centre.copy_(encoded.mean(dim=(0, 2, 3), keepdim=True))
            self.scale.copy_(1 / encoded.std(dim=(0, 2, 3), keepdim=True).clamp_min(1e-3))

    def encoded(self, images: Tensor) -> Tensor:
        """The encoder's maps of RGB images in [0, 1], on one grid: `(N, C, h, w)`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            found = stacked(self.backbone((images - self.mean) / self.std))
        return (found - self.centre) * self.scale

    def forward(self, images: Tensor) -> Generated:
        """RGB images `(N, 3, H, W)` in [0, 1]; in training z is drawn from q(z|x)."""
        return self.generated(self.encoded(images))

    def generated(self, encoded: Tensor) -> Generated:
        """As `forward`, of the encoder's maps."""
        mean = self.latent_mean(encoded).float()
        log_variance = self.latent_log_variance(encoded).float().clamp(-10, 10)
        z = mean
        if self.training:
            z = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        decoded = self.decoder(z)
        attention = self._attention(decoded, encoded)
        return Generated(self.reconstruct(decoded), attention, mean, log_variance)

    def attention(self, encoded: Tensor) -> Tensor:
        """A_gen alone, of the encoder's maps, from the mean of q(z|x)."""
        return self._attention(self.decoder(self.latent_mean(encoded)), encoded)

    def _attention(self, decoded: Tensor, encoded: Tensor) -> Tensor:
        if self.detail is not None:
            detail = self.detail(encoded)
            decoded = torch.cat((decoded, detail.to(decoded.dtype)), dim=1)
        found: Tensor = self.attend(decoded)
        return found

    def train(self, mode: bool = True) -> "AttentionNetwork":  # noqa: FBT001, FBT002  (PyTorch's signature)
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self


class Discriminator(nn.Sequential):
    """DCGAN's discriminator for any side: strided convolutions down to 4 × 4, then one output.

    The output `(N, 1)` is a logit: D is its sigmoid. DCGAN has four convolutions for 64 pixels;
    each doubling of the side adds one, and channels double up to eight times `base`.
    """

    def __init__(self, channels: int, side: int, base: int) -> None:
        layers: list[nn.Module] = []
        for number in range(round(math.log2(side / _LEAST_SIDE))):
            width = base * 2 ** min(number, 3)
            layers.append(nn.Conv2d(channels, width, 4, 2, 1))
            layers += [nn.BatchNorm2d(width)] if number else []
            layers.append(nn.LeakyReLU(_LEAK))
            channels = width
        layers += (nn.Conv2d(channels, 1, _LEAST_SIDE), nn.Flatten())
        super().__init__(*layers)
        self.apply(dcgan_initialised)


class PatchDiscriminator(nn.Sequential):
    """A discriminator that is asked of every place: `(N, C, h, w)` → logits `(N, 1, h, w)`.

    There are many more places than images to learn from. Its convolutions see one place each:
    noise in features should not be told by its roughness.
    """

    def __init__(self, channels: int, base: int) -> None:
        super().__init__(
            nn.Conv2d(channels, base, 1),
            nn.BatchNorm2d(base),
            nn.LeakyReLU(_LEAK),
            nn.Conv2d(base, 1, 1),
        )
        self.apply(dcgan_initialised)


def of_image(places: Tensor) -> Tensor:
    """The logit `(N, 1)` of each image: the mean of the fiftieth that look least real."""
    logits = places.flatten(1).float()
    least = logits.topk(max(1, logits.shape[1] // 50), dim=1, largest=False).values
    return least.mean(dim=1, keepdim=True)


class Features(nn.Sequential):
    """F_img: two convolutions of what the encoder found around each place."""

    def __init__(self, encoded: int, channels: int) -> None:
        super().__init__(
            nn.Conv2d(encoded, channels, 1),
            nn.LeakyReLU(_LEAK),
            nn.Conv2d(channels, channels, 1),
            nn.LeakyReLU(_LEAK),
        )


class FeatureGenerator(nn.Module):
    """ADGAN's generator: F_nor → the encoder of the attention network → z → decoder → F_nor again.

    The encoder sees images, so a 1×1 convolution makes three channels of F_nor first.
    """

    def __init__(
        self, encoder: Backbone, *, channels: int, latent: int, widths: Sequence[int]
    ) -> None:
        super().__init__()
        self.show = nn.Conv2d(channels, 3, 1)
        self._encoder = (encoder,)  # the attention network's, which has its parameters
        self.latent = nn.Conv2d(sum(encoder.channels), latent, 1)
        self.decoder = Decoder(latent, widths, encoder.strides[0])
        self.out = nn.Conv2d(widths[-1], channels, 3, padding=1)
        self.decoder.apply(dcgan_initialised)

    def forward(self, features: Tensor) -> Tensor:
        encoded = stacked(self._encoder[0](self.show(features)))
        found: Tensor = F.leaky_relu(self.out(self.decoder(self.latent(encoded))), _LEAK)
        return found


class TwoStageNet(Network):
    """What inspects: the attention network, F_img, and ADGAN's discriminator.

    Args:
        attention: Stage one.
        channels: Of F_img.
        base: Channels of the discriminator's first convolution.
    """

    exact_in_int8 = (  # cheap, and they decide
        "attention_network.detail.",
        "attention_network.attend.",
        "discriminator.",
    )
    int8_operators = ("Conv", "ConvTranspose", "Relu", "Add", "MaxPool")

    def __init__(self, attention: AttentionNetwork, *, channels: int, base: int) -> None:
        super().__init__()
        self.attention_network = attention
        self.features = Features(sum(attention.backbone.channels), channels)
        self.discriminator = PatchDiscriminator(channels, base)

    def normal_features(self, around: Tensor, attention: Tensor) -> Tensor:
        """F_nor (Eq 6): what the attention map leaves of F_img, which is made of `around`."""
        return attended_features(self.features(around), attention)

    def forward(self, views: Tensor) -> Found:
        return self.found(as_images(views))

    def found(self, images: Tensor) -> Found:
        """As `forward`, of RGB images `(N, 3, H, W)` in [0, 1]."""
        encoded = self.attention_network.encoded(images)
        attention = self.attention_network.attention(encoded)
        logits = of_image(self.discriminator(self.normal_features(around(encoded), attention)))
        return Found(F.softplus(-logits), attention[:, 0])  # -log D

    def prepare_export(self, *, half: bool) -> None:
        """As `Network.prepare_export`: the encoder may be fp16."""
        self.attention_network.backbone.prepare_export(half=half)
        fold_batch_norm(self)


def around(encoded: Tensor) -> Tensor:
    """The mean of the 3 × 3 places around each, so that one convolution sees them all.

    Beyond the border is 0. A pool that counts zeros would do the same; but OpenVINO moves the
    subtraction of `encoded` behind it in int8, and at the border that is wrong.
    """
    there = F.avg_pool2d(encoded.new_ones(1, 1, *encoded.shape[2:]), 3, 1, 1)
    return F.avg_pool2d(encoded, 3, 1, 1, count_include_pad=False) * there


def as_images(views: Tensor) -> Tensor:
    """uint8 RGB views `(N, H, W, 3)` as float32 `(N, 3, H, W)` in [0, 1]."""
    return views.permute(0, 3, 1, 2).to(torch.float32) / 255


def two_stage_method(
    network: TwoStageNet, view: ViewSpec, good: npt.NDArray[np.float64]
) -> TwoStageMethod:
    """How the engine runs `network`; `good` are the scores of good training images."""
    return TwoStageMethod(
        network=network.spec(view.side),
        view=view,
        good_mean=float(good.mean()),
        good_std=max(float(good.std()), 1e-12),
    )


def dcgan_initialised(part: nn.Module) -> None:
    """DCGAN's initialisation: weights N(0, 0.02), BatchNorm's N(1, 0.02)."""
    if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(part.weight, 0.0, 0.02)
        if part.bias is not None:
            nn.init.zeros_(part.bias)
    elif isinstance(part, nn.BatchNorm2d):
        nn.init.normal_(part.weight, 1.0, 0.02)
        nn.init.zeros_(part.bias)
