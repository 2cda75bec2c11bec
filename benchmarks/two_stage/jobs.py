"""One training and all that is measured of it."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter
from torch import Tensor

from benchmarks.two_stage.views import Views, splits_of
from engine.errors import TrainingError
from engine.spec import spec
from train.checkpoint import Checkpoint, Epoch
from train.datasets import Listed, Split
from train.pixels import PixelRanking, pixel_ranking
from train.recipes import Run
from train.recipes.two_stage import TwoStage, TwoStageTraining
from train.two_stage.network import as_images
from train.weights import Weights

SCORES = ("adgan", "attention_discriminator", "reconstruction", "attention_1", "attention_10")
"""ADGAN's; -log D of the attention network's discriminator; the mean squared error of the
reconstruction; the mean of the largest 1 % and 10 % of 1 - attention."""
_BATCH = 32


@spec
class Job:
    """`stage` is what it is for: `select` never looks at a test image."""

    stage: str
    set: str
    draw: int
    variant: str
    settings: TwoStage

    @property
    def key(self) -> str:
        return f"{self.stage}-{self.set}-{self.variant}-{self.draw}"


@spec
class Group:
    """Images of one part of the split: their scores by name, and how the maps show defects."""

    scores: dict[str, tuple[float, ...]]
    defective: tuple[bool, ...]
    kinds: tuple[str, ...]
    pixels: PixelRanking | None


@spec
class Result:
    job: Job
    groups: dict[str, Group]
    curves: dict[str, tuple[float, ...]]
    seconds: float
    train_seconds: float
    device: str
    finished: str
    warnings: tuple[str, ...]


RESULT_JSON = TypeAdapter(Result)


class _Seen:
    """Training images that are views already."""

    def __init__(self, views: Views, split: Split) -> None:
        self._pixels = np.ascontiguousarray(views.of(split.train_good))
        self.good = range(len(self._pixels))
        self.split = split

    def frame(self, index: int) -> npt.NDArray[np.uint8]:
        return self._pixels[index]


class _Unsaved(Checkpoint):
    def save(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run(Run):
    """A run that keeps nothing on disk, and begins after so many epochs."""

    begun: int = 0

    def checkpoint(self, _images: Any, **parts: Any) -> Checkpoint:
        found = _Unsaved(
            self.folder, identity="", seed=self.seed, parts=parts, on_epoch=self.on_epoch
        )
        before = Epoch(
            number=0, of=0, loss=0.0, learning_rate=0.0, separation=math.nan, seconds=0.0
        )
        found.history = [before] * self.begun
        return found


class _Training(TwoStageTraining):
    """Keeps what the watch saw, for the curves."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if self.network.device.type == "cuda":  # minutes matter more here than the last digit
            torch.use_deterministic_algorithms(mode=False)
            torch.backends.cudnn.benchmark = True
        self.gaps: list[float] = []
        self.spreads: list[float] = []
        self.warnings: list[str] = []

    def _judge(self, number: int) -> None:
        watch = self._watch
        self.gaps.append(_mean(watch._gaps))  # noqa: SLF001
        self.spreads.append(_mean(watch._spreads))  # noqa: SLF001
        try:
            super()._judge(number)
        except TrainingError as error:  # a table may show it
            self.warnings.append(str(error))


def _mean(values: Sequence[Tensor]) -> float:
    return float(torch.stack(list(values)).mean()) if values else math.nan


def run_job(
    job: Job,
    views: Views,
    weights: Weights,
    *,
    pictures: Path | None = None,
    after: _Training | None = None,
) -> tuple[Result, _Training]:
    """Train, then score.

    Args:
        job: What to train.
        views: Its set.
        weights: Of the encoder.
        pictures: A folder for pictures of a few images, or None.
        after: Only ADGAN is trained, on the attention network of this training.
    """
    began = time.perf_counter()
    split = splits_of(views, job.draw)
    losses: list[float] = []
    warnings: list[str] = []
    run = _Run(
        settings=job.settings,
        weights=weights,
        seed=job.draw,
        folder=Path("/nonexistent"),
        on_epoch=lambda epoch: losses.append(epoch.loss),
        on_warning=warnings.append,
        begun=0 if after is None else job.settings.adgan_from,
    )
    training = _Training(job.settings.settled(weights), _Seen(views, split), run)
    if after is not None:
        attention = after.network.attention_network.state_dict()
        training.network.attention_network.load_state_dict(attention)
        training.discriminator.load_state_dict(after.discriminator.state_dict())
    training.trained()
    trained = time.perf_counter() - began
    parts: dict[str, tuple[Listed, ...]] = {
        "validation": split.held_out_good + split.train_defective,
        "unseen": () if job.stage == "select" else split.test,
    }
    groups = {
        name: scored(training, views, items, pictures and pictures / f"{job.key}-{name}.jpg")
        for name, items in parts.items()
        if items
    }
    result = Result(
        job=job,
        groups=groups,
        curves={
            "loss": tuple(round(x, 5) for x in losses),
            "gap": tuple(0.0 if math.isnan(x) else round(x, 5) for x in training.gaps),
            "spread": tuple(0.0 if math.isnan(x) else round(x, 5) for x in training.spreads),
        },
        seconds=round(time.perf_counter() - began, 1),
        train_seconds=round(trained, 1),
        device=(torch.cuda.get_device_name() if training.network.device.type == "cuda" else "cpu"),
        finished=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        warnings=(*training.warnings, *warnings),
    )
    return result, training


def scored(
    training: TwoStageTraining, views: Views, items: Sequence[Listed], picture: Path | None
) -> Group:
    """All scores of `items`, from the network as it is; maps are ranked where masks exist."""
    network, device = training.network.eval(), training.network.device
    training.discriminator.eval()
    found: dict[str, list[float]] = {name: [] for name in SCORES}
    maps, shown = [], []
    pixels = views.of(items)
    with torch.inference_mode():
        for start in range(0, len(items), _BATCH):
            images = as_images(torch.from_numpy(pixels[start : start + _BATCH]).to(device))
            generated = network.attention_network(images)
            attention = generated.attention
            whole = network.found(images)
            logits = training.discriminator(torch.cat((images, attention), dim=1))
            missing = 1 - attention.flatten(1)
            error = (generated.reconstruction - images).square().mean(dim=(1, 2, 3))
            found["adgan"] += whole.score[:, 0].tolist()
            found["attention_discriminator"] += torch.nn.functional.softplus(-logits)[:, 0].tolist()
            found["reconstruction"] += error.tolist()
            for share in (1, 10):
                count = missing.shape[1] * share // 100
                top = missing.topk(count, dim=1).values.mean(dim=1)
                found[f"attention_{share}"] += top.tolist()
            maps.append((1 - attention[:, 0]).float().cpu().numpy())
            if picture:
                shown.append((generated.reconstruction * 255).byte().cpu().numpy())
    heat = np.concatenate(maps)
    masks = views.masks_of(items)
    usable = np.array([item.mask is not None or not item.defective for item in items])
    ranked = None
    if masks[usable].any():
        thin = (slice(None), slice(None, None, 2), slice(None, None, 2))  # every second pixel
        ranked = pixel_ranking(list(heat[usable][thin]), list(masks[usable][thin]))
    if picture:
        order = np.linspace(0, len(items) - 1, min(12, len(items))).round().astype(int)
        again = np.concatenate(shown)[order].transpose(0, 2, 3, 1)
        _draw(picture, pixels[order], masks[order], heat[order], again)
    return Group(
        scores={name: tuple(float(f"{x:.6g}") for x in values) for name, values in found.items()},
        defective=tuple(item.defective for item in items),
        kinds=tuple(item.kind for item in items),
        pixels=ranked,
    )


def _draw(
    path: Path,
    views: npt.NDArray[np.uint8],
    masks: npt.NDArray[np.bool_],
    heat: npt.NDArray[np.float32],
    again: npt.NDArray[np.uint8],
) -> None:
    """A row for each image: the view, what is missing of the attention, mask, reconstruction."""
    grey = [
        np.repeat((255 * each).astype(np.uint8)[..., None], 3, axis=3) for each in (heat, masks)
    ]
    rows = np.concatenate((views, *grey, again), axis=2)
    half = rows[:, ::2, ::2, ::-1]
    cv2.imwrite(str(path), half.reshape(-1, *half.shape[2:]), [cv2.IMWRITE_JPEG_QUALITY, 85])


def warm_up(workers: int) -> None:
    """What takes seconds once in a process."""
    cv2.setNumThreads(1)
    if torch.cuda.is_available():
        torch.set_num_threads(1)
        torch.zeros(1, device="cuda")
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
