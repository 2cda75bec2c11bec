"""Table 1 in kind: a DCGAN with an encoder ([25]), and what hard augmentation adds to it.

Its discriminator learns that good images are real, and that reconstructions and anomalies, made by
augmentation or known, are fake. Its output for an image is the score: -log D(x).
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import TypeAdapter
from torch import Tensor, nn

from benchmarks.two_stage.cifar import CLASSES, read_cifar
from benchmarks.two_stage.views import Views, splits_of
from engine.frame import Pixels
from engine.spec import spec
from train.checkpoint import deterministic
from train.evaluate import auroc
from train.two_stage import losses
from train.two_stage.hard_augmentation import Augmentation, hard
from train.two_stage.network import Decoder, Discriminator, as_images, dcgan_initialised

SIDE: Final = 64
BATCH: Final = 32
STEPS: Final = 400
RATE: Final = 2e-4
LATENT: Final = 128
KNOWN_OF_CIFAR: Final = 128
VARIANTS: Final[dict[str, tuple[Augmentation, ...] | None]] = {
    "base": (),
    "rotation": ("rotation",),
    "permutation": ("permutation",),
    "jitter": ("jitter",),
    "R&P": ("rotation", "permutation"),
    "R&P&J": ("rotation", "permutation", "jitter"),
    "semi": None,
}
"""`semi` learns from known anomalies instead."""


@spec
class DcganJob:
    set: str
    draw: int
    variant: str

    @property
    def key(self) -> str:
        return f"dcgan-{self.set}-{self.variant}-{self.draw}"


@spec
class DcganResult:
    job: DcganJob
    scores: tuple[float, ...]
    defective: tuple[bool, ...]
    seconds: float


DCGAN_JSON = TypeAdapter(DcganResult)


class _Generator(nn.Sequential):
    def __init__(self) -> None:
        body = list(Discriminator(3, SIDE, 32))[:-2]
        super().__init__(
            *body,
            nn.Conv2d(256, LATENT, 1),
            Decoder(LATENT, (128, 64, 32, 32)),
            nn.Conv2d(32, 3, 3, padding=1),
            nn.Sigmoid(),
        )
        self.apply(dcgan_initialised)


def run_dcgan(job: DcganJob, views: Views, *, steps: int = STEPS) -> DcganResult:
    """A variant on one of the sets, with the draw's known defects."""
    began = time.perf_counter()
    split = splits_of(views, job.draw)
    scores = dcgan_scores(
        views.of(split.train_good),
        views.of(split.train_defective),
        views.of(split.test),
        variant=job.variant,
        seed=job.draw,
        steps=steps,
    )
    return DcganResult(
        job=job,
        scores=tuple(np.round(scores, 6).tolist()),
        defective=tuple(item.defective for item in split.test),
        seconds=round(time.perf_counter() - began, 1),
    )


def of_cifar(folder: Path, *, seed: int, steps: int = STEPS) -> Iterator[tuple[str, str, float]]:
    """Class, variant and AUROC of images: Table 1 as the paper has it."""
    train, test = read_cifar(folder)
    rng = np.random.default_rng(seed)
    for label, name in enumerate(CLASSES):
        others = train.pixels[train.labels != label]
        known = others[rng.permutation(len(others))[:KNOWN_OF_CIFAR]]
        for variant in VARIANTS:
            scores = dcgan_scores(
                train.of(label), known, test.pixels, variant=variant, seed=seed, steps=steps
            )
            yield name, variant, auroc(scores.astype(np.float64), test.labels != label)


def dcgan_scores(
    good: Pixels, known: Pixels, tested: Pixels, *, variant: str, seed: int, steps: int = STEPS
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Train a variant on `good` (and, if it is `semi`, `known`) images; the scores of `tested`.

    Args:
        good: uint8 RGB `(N, side, side, 3)`.
        known: Known anomalies.
        tested: Images of both kinds.
        variant: One of `VARIANTS`.
        seed: Of initialisation and batches.
        steps: How many batches are learnt from.
    """
    device = deterministic(seed)

    def small(pixels: Pixels) -> Tensor:
        images = as_images(torch.from_numpy(np.ascontiguousarray(pixels)).to(device))
        return F.interpolate(images, (SIDE, SIDE), mode="area")

    goods, anomalous = small(good), small(known)
    generator, discriminator = _Generator().to(device), Discriminator(3, SIDE, 32).to(device)
    of_generator, of_discriminator = (
        torch.optim.Adam(part.parameters(), RATE, (0.5, 0.999))
        for part in (generator, discriminator)
    )
    kinds = VARIANTS[variant]
    for _ in range(steps):
        images = goods[torch.randint(len(goods), (BATCH,), device=device)]
        made = images[:0]
        if kinds is None:
            made = anomalous[torch.randint(len(anomalous), (BATCH,), device=device)]
        elif kinds:
            made = hard(images, kinds)
        generated = generator(images)
        logits = discriminator(torch.cat((images, generated.detach(), made)))
        _descend(-losses.adversarial(logits[:BATCH], logits[BATCH:]), of_discriminator)
        logits = discriminator(torch.cat((images, generated)))
        likeness = F.mse_loss(generated, images)
        _descend(losses.generator_adversarial(logits[BATCH:]) + 10 * likeness, of_generator)
    discriminator.eval()
    with torch.inference_mode():
        parts = [
            F.softplus(-discriminator(small(tested[start : start + 512])))[:, 0].cpu().numpy()
            for start in range(0, len(tested), 512)
        ]
    return np.concatenate(parts)


def _descend(loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
