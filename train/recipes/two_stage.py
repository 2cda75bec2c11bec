"""Attention map-guided two-stage anomaly detection: good parts alone, and hard augmentation.

Stage one trains the attention network, stage two ADGAN with that frozen. The paper leaves sizes,
rates, epochs and the latent width to a supplement; docs/method.md lists what is chosen here and
why. Known defects are not learnt from.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Annotated, ClassVar, Final, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own custom)
from pydantic import Field, model_validator
from torch import Tensor, nn

from engine.errors import ConfigurationError, TrainingError
from engine.frame import Box, Pixels
from engine.methods import MethodSpec
from engine.spec import spec
from engine.view import ViewSpec, view
from train.backbones import BACKBONES, AnyBackbone
from train.backbones.resnet import ResNet
from train.batches import in_turn
from train.cache import ByteLimitedCache
from train.checkpoint import EpochInProgress, deterministic
from train.datasets import TrainingImages
from train.features import first_good_views, has_bf16
from train.recipes import Recipe, RecipeSettings, Run, Trained
from train.schedule import Cosine, learning_rate
from train.two_stage import losses
from train.two_stage.hard_augmentation import (
    HardAugmentation,
    anomalies,
    noised,
    noised_in_regions,
)
from train.two_stage.losses import Form
from train.two_stage.network import (
    MOST_DECODED,
    AttentionNetwork,
    Discriminator,
    FeatureGenerator,
    TwoStageNet,
    around,
    as_images,
    of_image,
    two_stage_method,
)
from train.weights import Weights

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Widths = tuple[Count, Count, Count, Count]

_AT_LIMIT: Final = 0.999  # D of what is real less D of what is generated
_CONSTANT: Final = 1e-3  # the standard deviation of attention in a batch


@spec
class TwoStage(RecipeSettings):
    """The settings of `two_stage`."""

    type: Literal["two_stage"] = "two_stage"
    learns_defects: ClassVar[bool] = False
    looks_closer: ClassVar[bool] = False

    # What the network sees. The encoder, and whether it stays as it was pretrained.
    view: ViewSpec = ViewSpec(side=256, equalise="never", reducing_gap=2.0)
    backbone: AnyBackbone = ResNet(architecture="resnet18", stages=("layer2", "layer3"))
    freeze: bool = True

    # The attention network: channels of z, of each transposed convolution, of what its attention
    # map sees of the encoder (0: nothing, as in the paper), of the two paths, and of its
    # discriminator's first convolution.
    latent: Count = 128
    widths: Widths = (128, 64, 32, 16)
    detail: Annotated[int, Field(ge=0)] = 128
    path: Count = 8
    discriminator: Count = 16

    # ADGAN: channels of F_img and of its discriminator, and what its generator has.
    features: Count = 32
    adgan_discriminator: Count = 32
    adgan_latent: Count = 128
    adgan_widths: Widths = (128, 64, 32, 32)
    # What its discriminator takes for fake, with these weights: synthetic anomalies with a region,
    # as in §4.2.1, and what its generator makes. Noise in features is fake too, with a weight of 1
    # (augmentation.noise).
    adgan_anomalies: Weight = 1.0
    adgan_generated: Weight = 0.1

    # Weights of the terms of Eq 5; 0 leaves a term out.
    adversarial: Weight = 1.0  # Eq 1
    anomaly_adversarial: Weight = 1.0  # Eq 2
    autoencoding: Weight = 1.0  # Eq 3
    attention: Weight = 100.0  # Eq 4
    anomaly_form: Form = "log_1_minus_d"
    deviation: Positive = 0.03  # of p(x|z) in Eq 3

    augmentation: HardAugmentation = HardAugmentation()

    epochs: Count = 40
    adgan_from: Annotated[int, Field(ge=0)] = 20  # epochs of the attention network; then ADGAN
    batch: Count = 8  # good images of a step; as many anomalies are made of them
    least_steps: Count = 20  # steps an epoch, however few good images there are
    first_rate: Positive = 1e-3  # Adam with β = (0.5, 0.999), as DCGAN; falls along a cosine
    discriminator_rate: Positive = 2e-4
    adgan_rate: Positive = 5e-4
    clip_norm: Positive = 10.0
    hold_out: Annotated[float, Field(ge=0, lt=1)] = 0.15

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.view.side < 64 or self.view.side & (self.view.side - 1):
            raise ValueError("a view should have a side of 64, 128, 256, 512 or 1024 pixels")
        if self.adgan_from >= self.epochs:
            raise ValueError("ADGAN needs an epoch at least: raise epochs, or lower adgan_from")
        return self

    def settled(self, weights: Weights | None) -> Self:
        """Without weights there is nothing to freeze."""
        if self.backbone.strides[0] not in (2, 4, 8, MOST_DECODED):
            raise ConfigurationError(
                "--stage",
                self.backbone.label,
                "does not fit the recipe two_stage, whose decoder enlarges sixteen times at most: "
                "its finest feature map should have a sixteenth of the view's side or an eighth",
            )
        if weights is None:
            return replace(self, freeze=False)
        return replace(self, backbone=self.backbone.fitted(weights))

    def lasting(self, epochs: int) -> Self:
        """Both stages are shortened or lengthened alike; each has one epoch at least."""
        if epochs < 2:
            raise ConfigurationError("--epochs", str(epochs), "two stages need two epochs or more")
        first = round(self.adgan_from * epochs / self.epochs)
        return replace(self, epochs=epochs, adgan_from=min(max(first, 1), epochs - 1))

    @property
    def facts(self) -> dict[str, str]:
        return {
            "Batch": f"{self.batch} good, as many synthetic anomalies",
            "Epochs of the attention network, of ADGAN": (
                f"{self.adgan_from}, {self.epochs - self.adgan_from}"
            ),
            "Backbone weights": "frozen" if self.freeze else "trained",
        }


def open(settings: TwoStage) -> Recipe:
    """The recipe with these settings."""
    return Recipe(
        network=partial(network, settings),
        train=lambda images, run: TwoStageTraining(settings, images, run).trained(),
    )


def network(settings: TwoStage) -> TwoStageNet:
    """The network with random parameters."""
    return TwoStageNet(
        AttentionNetwork(
            BACKBONES.of(settings.backbone).open(settings.backbone, side=settings.view.side),
            latent=settings.latent,
            widths=settings.widths,
            detail=settings.detail,
            path=settings.path,
            freeze=settings.freeze,
        ),
        channels=settings.features,
        base=settings.adgan_discriminator,
    )


class TwoStageTraining:
    """One training: both stages, their discriminators and generators; the last epoch counts.

    Args:
        settings: Of the recipe.
        images: The training images; only the good ones are looked at.
        run: Weights, seed and folder.
    """

    def __init__(self, settings: TwoStage, images: TrainingImages, run: Run) -> None:
        self._device = device = deterministic(run.seed)
        self._settings, self._images, self._run = settings, images, run
        self.network = network(settings)
        attention = self.network.attention_network
        backbone = attention.backbone
        if run.weights is not None:
            backbone.load(run.weights)
        self.discriminator = Discriminator(4, settings.view.side, settings.discriminator)
        self.generator = FeatureGenerator(
            backbone,
            channels=settings.features,
            latent=settings.adgan_latent,
            widths=settings.adgan_widths,
        )
        for part in (self.network, self.discriminator, self.generator):
            part.to(device)
            for weights in part.parameters():
                if weights.dim() == 4:  # twice as fast on CPUs
                    weights.data = weights.data.contiguous(memory_format=torch.channels_last)
        self._attention_learns = _adam(attention, settings.first_rate)
        self._discriminator_learns = _adam(self.discriminator, settings.discriminator_rate)
        adgan = nn.ModuleList((self.network.features, self.network.discriminator))
        self._adgan_learns = _adam(adgan, settings.adgan_rate)
        self._generator_learns = _adam(self.generator, settings.adgan_rate)
        self._bf16 = has_bf16(device)
        self._views: ByteLimitedCache[int, Pixels] = ByteLimitedCache(limit=2 << 30)
        self._share = 0.0  # of this stage, how much is done
        self._watch = Watch()

    def trained(self) -> Trained:
        """Train both stages, or continue where the run was interrupted."""
        settings, run = self._settings, self._run
        checkpoint = run.checkpoint(
            self._images,
            network=self.network,
            discriminator=self.discriminator,
            generator=self.generator,
            attention_learns=self._attention_learns,
            discriminator_learns=self._discriminator_learns,
            adgan_learns=self._adgan_learns,
            generator_learns=self._generator_learns,
        )
        if not checkpoint.history:
            attention = self.network.attention_network
            shown = as_images(first_good_views(self._images, settings.view).to(self._device))
            if run.weights is not None and not settings.freeze:
                attention.backbone.adapt(lambda: attention.encoded(shown))
            attention.standardise(shown)
        with ThreadPoolExecutor() as pool:
            for epoch in checkpoint.epochs(settings.epochs):
                is_first = epoch.number < settings.adgan_from
                begun, of = (
                    (0, settings.adgan_from)
                    if is_first
                    else (settings.adgan_from, settings.epochs - settings.adgan_from)
                )
                self._set_out(attention=is_first)
                self._watch = Watch()
                steps = max(settings.least_steps, -(-len(self._images.good) // settings.batch))
                chosen = in_turn(self._images.good, epoch.rng)
                for step in range(steps):
                    self._share = (epoch.number - begun + step / steps) / of
                    images = self._shown([next(chosen) for _ in range(settings.batch)], pool)
                    if is_first:
                        made, where = anomalies(images, settings.augmentation)
                        self._teach_attention(images, made, where, epoch)
                    else:
                        made, _ = anomalies(images, replace(settings.augmentation, whole=0.0))
                        self._teach_adgan(images, made, epoch)
                self._judge(epoch.number)
            method = self._method(pool)
        return Trained.of(self.network, method, checkpoint)

    def _teach_attention(
        self, images: Tensor, made: Tensor, where: Tensor, epoch: EpochInProgress
    ) -> None:
        """One step of stage one: Eq 1 and 2 for the discriminator, Eq 5 for the generator."""
        settings, n = self._settings, len(images)
        whole = torch.ones_like(where)  # A_nor
        with self._autocast():
            encoded = self.network.attention_network.encoded(torch.cat((images, made)))
            if settings.augmentation.noise:
                anomalous, where = noised_in_regions(encoded[n:], where, settings.augmentation)
                encoded = torch.cat((encoded[:n], anomalous))
            found = self.network.attention_network.generated(encoded)
        reconstruction, attention = found.reconstruction, found.attention
        self._watch.saw(attention)
        real = torch.cat((torch.cat((images, made)), torch.cat((whole, where))), dim=1)
        generated = torch.cat((reconstruction, attention), dim=1)
        zero = attention.new_zeros(())
        of_normal = of_anomalies = zero
        if settings.adversarial or settings.anomaly_adversarial:
            normal, anomalous, fake, fake_ano = self._judged(
                self.discriminator, real, generated.detach()
            ).chunk(4)
            self._watch.heard(normal, fake)
            value = settings.adversarial * losses.adversarial(normal, fake)
            value = value + settings.anomaly_adversarial * losses.anomaly_adversarial(
                anomalous, fake_ano, settings.anomaly_form
            )
            self._descend(
                -value, self._discriminator_learns, settings.discriminator_rate, epoch, noted=False
            )
            *_, fake, fake_ano = self._judged(self.discriminator, real, generated).chunk(4)
            of_normal = settings.adversarial * losses.generator_adversarial(fake)
            of_anomalies = settings.anomaly_adversarial * losses.generator_adversarial(fake_ano)
        objective = losses.total(
            of_anomalies,
            of_normal,
            settings.autoencoding
            * losses.autoencoding(
                images,
                reconstruction[:n],
                found.mean[:n],
                found.log_variance[:n],
                deviation=settings.deviation,
            ),
            settings.attention * losses.attention_error(attention[:n], whole, attention[n:], where),
        )
        self._descend(objective, self._attention_learns, settings.first_rate, epoch)

    def _teach_adgan(self, images: Tensor, made: Tensor, epoch: EpochInProgress) -> None:
        """One step of stage two: the usual GAN, on F_nor instead of images."""
        settings, net, n = self._settings, self.network, len(images)
        with torch.no_grad(), self._autocast():
            encoded = net.attention_network.encoded(torch.cat((images, made)))
            attention = net.attention_network.attention(encoded)
        with self._autocast():
            near = around(encoded)
            features = net.normal_features(near, attention)
            normal = features[:n].detach()
            generated = self.generator(normal)
            noisy = noised(near[:n], settings.augmentation.noise)
            unusual = net.normal_features(noisy, attention[:n])
        shown = torch.cat((features, unusual))
        logits = self._judged(net.discriminator, shown, generated.detach())
        real, ano, noise, fake = logits.chunk(4)
        value = settings.adgan_generated * losses.adversarial(of_image(real), of_image(fake))
        if settings.adgan_anomalies:
            value = value + settings.adgan_anomalies * losses.adversarial(
                of_image(real), of_image(ano)
            )
        if settings.augmentation.noise:
            value = value + losses.adversarial(real, noise)
        self._watch.heard(of_image(real), of_image(fake))
        self._descend(-value, self._adgan_learns, settings.adgan_rate, epoch, noted=False)
        *_, fake = self._judged(net.discriminator, shown.detach(), generated).chunk(4)
        likeness = F.mse_loss(generated.float(), normal)
        objective = losses.generator_adversarial(of_image(fake)) + likeness
        self._descend(objective, self._generator_learns, settings.adgan_rate, epoch)

    def _judged(self, discriminator: nn.Module, real: Tensor, generated: Tensor) -> Tensor:
        """The logits of both, seen in one batch: BatchNorm must not tell real from generated."""
        with self._autocast():
            logits: Tensor = discriminator(torch.cat((real, generated.to(real.dtype))))
        return logits.float()

    def _descend(
        self,
        loss: Tensor,
        optimiser: torch.optim.Optimizer,
        rate: float,
        epoch: EpochInProgress,
        *,
        noted: bool = True,
    ) -> None:
        epoch.descend(
            loss,
            optimiser,
            learning_rate=learning_rate(rate, Cosine(), self._share, of=1),
            clip_norm=self._settings.clip_norm,
            noted=noted,
        )

    def _set_out(self, *, attention: bool) -> None:
        """What learns in this stage learns; the attention network of stage two stays as it is."""
        settings, net = self._settings, self.network
        net.train()
        net.attention_network.requires_grad_(attention)
        net.attention_network.backbone.requires_grad_(attention and not settings.freeze)
        if not attention:
            net.attention_network.eval()

    def _judge(self, number: int) -> None:
        """Say what an epoch shows of mode collapse."""
        settings = self._settings
        if number + 1 == settings.adgan_from and self._watch.is_constant:
            raise TrainingError(
                f"mode collapse: after {number + 1} epochs the attention map is the same "
                "everywhere, so it shows no defect; try another --seed or more --epochs, and look "
                "for blank training images"
            )
        if self._watch.is_at_limit and number + 1 in (settings.adgan_from, settings.epochs):
            which = "the attention network's" if number < settings.adgan_from else "ADGAN's"
            self._run.on_warning(
                f"mode collapse: {which} discriminator told real from generated without fail "
                f"throughout epoch {number + 1}, so its generator learns nothing from it; check "
                "the bundle with agent evaluate, and try another --seed or fewer --epochs"
            )

    def _shown(self, indices: list[int], pool: ThreadPoolExecutor) -> Tensor:
        """Training images as the network is shown them: `(N, 3, side, side)` in [0, 1]."""
        views = np.stack(list(pool.map(self._view, indices)))
        return as_images(torch.from_numpy(views).to(self._device))

    def _view(self, index: int) -> Pixels:
        def make() -> Pixels:
            frame = self._images.frame(index)
            return view(frame, Box.around(frame), self._settings.view)

        return self._views.get(index, make, lambda pixels: pixels.nbytes)

    def _method(self, pool: ThreadPoolExecutor) -> MethodSpec:
        """How the engine runs the network; deviations are measured by the good training images."""
        settings, good = self._settings, self._images.good
        self.network.eval()
        scores = []
        with torch.inference_mode():
            for start in range(0, len(good), settings.batch):
                images = self._shown(list(good[start : start + settings.batch]), pool)
                scores += self.network.found(images).score[:, 0].tolist()
        return two_stage_method(self.network, settings.view, np.array(scores))

    def _autocast(self) -> torch.autocast:
        """Networks multiply in bf16 where the hardware has it; losses stay in fp32."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)


class Watch:
    """What an epoch shows of mode collapse."""

    def __init__(self) -> None:
        self._gaps: list[Tensor] = []
        self._spreads: list[Tensor] = []

    def saw(self, attention: Tensor) -> None:
        """The attention maps of a step, of good parts and of anomalies."""
        self._spreads.append(attention.detach().std())

    def heard(self, real: Tensor, generated: Tensor) -> None:
        """What a discriminator answered in a step, as logits."""
        of_real, of_generated = (torch.sigmoid(each.detach()).mean() for each in (real, generated))
        self._gaps.append(of_real - of_generated)

    @property
    def is_at_limit(self) -> bool:
        """Whether a discriminator was right and sure of it in every step."""
        return bool(self._gaps) and float(torch.stack(self._gaps).min()) > _AT_LIMIT

    @property
    def is_constant(self) -> bool:
        """Whether no step's attention maps differed from place to place."""
        return bool(self._spreads) and float(torch.stack(self._spreads).max()) < _CONSTANT


def _adam(module: nn.Module, rate: float) -> torch.optim.Adam:
    return torch.optim.Adam((p for p in module.parameters() if p.requires_grad), rate, (0.5, 0.999))
