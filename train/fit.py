"""Training ATAC-Net: Algorithm 2 of the paper.

    agent train --data mvtec_bottle --out bottle --backbone-weights resnet50-0676ba61.pth
    agent train --data mvtec_bottle --out bottle --profile paper --backbone-weights …

The defaults stand in `train.profile`. The last epoch counts; nothing is selected on test images.
After every epoch the state is saved, so that an interrupted training can go on; a training that
was interrupted ends in the same weights as one that was not.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from engine.attention import CropSpec, attention_box
from engine.bundle import MANIFEST, Bundle, TrainingRecord, replace_file, sha256
from engine.errors import ConfigurationError, TrainingError
from engine.frame import Box, Pixels
from engine.methods.atac import TwoPassInspector
from engine.score import ScoreSpec
from engine.view import ViewSpec, view, zoomed
from train.anomalies import Mask, alike, cells, moved, paint, transplanted
from train.backbone import PretrainedWeights, load_pretrained, unfold
from train.datasets import (
    SPLIT_JSON,
    Kept,
    Source,
    Split,
    TrainingImages,
    draw_split,
    read_listed,
)
from train.evaluate import auroc
from train.export import library_versions, write_bundle
from train.loss import (
    attention_loss,
    cell_loss,
    deviation,
    deviation_loss,
    drawn_reference,
    top_k_mean,
)
from train.memory import closer_view, remember
from train.network import AtacNet, AttentionHead, Maps, TorchBackend
from train.profile import PROFILE_JSON, Profile

CHECKPOINT: Final = "checkpoint.safetensors"
_UNFINISHED: Final = (CHECKPOINT, f"{CHECKPOINT}.partial")
_CHECKPOINT_FORM: Final = b"2"  # another one is another training's
_SAME_DONOR: Final = 0.5  # chance that a pseudo-defect is made of the image itself (D19)
_FEATURES_LIMIT: Final = 2 << 30  # bytes of a frozen trunk's features kept in memory
_UNFOLDED_ON: Final = 32  # good images, for the statistics of a folded BatchNorm
_REMEMBERED: Final = 1000  # good images at most that the memory is made of
_WATCHED: Final = 16  # held-out good images looked at now and then


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One training image as it is shown in one step.

    `mask` is where it is defective (all False for a good one), None when nobody knows. `index` is
    the same whenever the same pixels are shown, so that a frozen trunk need not look again: the
    place among the training images, or a number beyond for what was painted or moved once. What is
    made anew each time has none. `pseudo` tells a painted or transplanted defect from a real one.
    """

    pixels: Pixels
    mask: Mask | None
    defective: bool
    index: int | None
    pseudo: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What one epoch came to.

    `separation` is the AUROC of held-out good against known defective images, looked at half-way
    and at the end; NaN otherwise, and without images of either kind. It is there to watch, nothing
    is decided by it.
    """

    number: int
    of: int
    loss: float
    separation: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """A trained network, in evaluation mode, and what its record needs."""

    network: AtacNet
    reference: ScoreSpec
    final_loss: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedOptics:
    """What `TwoPassInspector` needs to know of a model that has no manifest yet."""

    view: ViewSpec
    crop: CropSpec
    score: ScoreSpec


def train_bundle(
    source: Source,
    out: Path,
    profile: Profile,
    *,
    weights: PretrainedWeights | None,
    defects: int | None = None,
    seed: int = 0,
    resume: bool = False,
    accept_flips: bool = False,
    on_split: Callable[[Split], None] = lambda _: None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> Bundle:
    """Draw a split of `source`, train on it, and write the bundle to the new folder `out`.

    Unfinished work waits in the folder `out.training` beside it and goes when the bundle stands.
    Raises `ConfigurationError` where one of the two cannot be made or holds something else.
    """
    if out.name in {"", ".."}:  # "." and the like have no name to put a folder beside
        out = out.resolve()
    run_folder = _run_folder(out)
    try:
        profile = settled(profile, weights)
        split = draw_split(source, defects=defects, hold_out=profile.hold_out, seed=seed)
        on_split(split)
        trained = fit(
            source,
            split,
            profile,
            weights=weights,
            seed=seed,
            run_folder=run_folder,
            resume=resume,
            on_epoch=on_epoch,
        )
        record = TrainingRecord(
            profile=profile.name,
            backbone=f"{profile.architecture} {'+'.join(profile.stages)}",
            pretrained=_described(weights),
            seed=seed,
            epochs=profile.epochs,
            good=len(split.train_good),
            defective=len(split.train_defective),
            split_sha256=sha256(SPLIT_JSON.dump_json(split, indent=1)),
            training_sha256=tuple(item.sha256 for item in split.training),
            held_out_scores=(),
            final_loss=trained.final_loss,
            seconds=round(trained.seconds, 1),
            versions=library_versions(),
        )
        bundle = write_bundle(
            out,
            trained.network,
            profile,
            trained.reference,
            record,
            source,
            split,
            accept_flips=accept_flips,
        )
        for name in _UNFINISHED:
            (run_folder / name).unlink(missing_ok=True)
        return bundle
    finally:
        with suppress(OSError):
            run_folder.rmdir()  # refused while an unfinished training waits in it


def _run_folder(out: Path) -> Path:
    """Make the folder for unfinished work beside `out`, which must be new or empty."""
    if (out / MANIFEST).exists():
        raise ConfigurationError("--out", str(out), "is a bundle already; name a new folder")
    run_folder = out.with_name(out.name + ".training")
    try:
        if out.exists() and any(out.iterdir()):
            raise ConfigurationError("--out", str(out), "is not empty; name a new folder")
        run_folder.mkdir(parents=True, exist_ok=True)
        foreign = {file.name for file in run_folder.iterdir()} - {*_UNFINISHED}
    except OSError as error:
        raise ConfigurationError(
            "--out",
            str(out),
            f"cannot be made ({error.strerror}: {error.filename}); name a folder that can",
        ) from error
    if foreign:
        raise ConfigurationError(
            "--out",
            str(out),
            f"has no place for unfinished work: {run_folder} holds {min(foreign)}; "
            "name another folder",
        )
    return run_folder


def settled(profile: Profile, weights: PretrainedWeights | None) -> Profile:
    """`profile` with what the weights decide: nothing to freeze without any, and their form."""
    if weights is None:
        return replace(profile, freeze=False, prototypes=0)
    return replace(profile, form=weights.form)


def fit(
    source: Source,
    split: Split,
    profile: Profile,
    *,
    weights: PretrainedWeights | None,
    seed: int,
    run_folder: Path,
    method: "Method | None" = None,
    resume: bool = False,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> Trained:
    """Train on `split` as `profile` says; the trunk starts from `weights`, or from scratch.

    `method` is ATAC-Net's unless another is given (`train.rivals`). `run_folder` receives the
    state after every epoch; `resume` goes on from there, and tells `on_epoch` of the epochs before
    first. Raises `TrainingError` when the loss is no longer a number, `ConfigurationError` when a
    checkpoint belongs to another training.
    """
    method = method or ATAC_NET
    device = deterministic(seed)
    network = method.network(profile)
    if weights is not None:
        load_pretrained(network.trunk, weights)
    network.to(device)
    reference = drawn_reference(profile, seed=seed)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, profile.learning_rate)
    checkpoint = _Checkpoint(
        run_folder / CHECKPOINT,
        identity=sha256(
            _CHECKPOINT_FORM
            + PROFILE_JSON.dump_json(profile)
            + SPLIT_JSON.dump_json(split)
            + str(seed).encode()
            + (b"" if weights is None else weights.sha256.encode())
        ),
    )
    history = checkpoint.load(network, optimiser) if resume else []
    for past in history:
        on_epoch(past)
    if not history and weights is not None and weights.fused and not network.frozen:
        good = torch.from_numpy(_first_views(source, split, profile)).to(device)
        unfold(network.trunk, lambda: network.features(good))

    images = TrainingImages(source, split)
    defects = Defects(images, profile, seed=seed)
    if not defects.located:
        # Cells taught by painted defects alone find what is painted (ADR 9).
        profile = replace(profile, cell_weight=0.0)
    if defects.located or not len(images.defective):
        profile = replace(profile, pseudo_scored="always")
    steps = max(profile.least_steps, math.ceil(len(images.good) / (profile.batch // 2)))  # D18
    with ThreadPoolExecutor() as pool:
        eyes = Eyes(network, profile, pool)
        scoring = reference
        if network.memory is not None:

            def good_views() -> Iterator[Tensor]:
                return eyes.good_views(images, np.random.default_rng([seed, 0]))

            norm = remember(network, profile, good_views, seed=seed)
            # Good parts stay at a deviation of about 0; one standard deviation of their distances
            # counts as `memory_weight` of the reference's.
            unit = profile.memory_weight * reference.reference_std
            network.memory.scale *= unit
            scoring = replace(
                reference,
                reference_mean=reference.reference_mean + norm.mean * unit,
            )
        watch = _Watch(source, split, profile, scoring)
        for epoch in range(len(history), profile.epochs):
            started = time.perf_counter()
            # Seeded by epoch, so that going on after an interruption changes nothing.
            rng = np.random.default_rng([seed, epoch])
            torch.manual_seed(seed + epoch)

            network.train()
            losses = []
            batches = method.batches(images, defects, profile, rng)
            for step, batch in enumerate(islice(batches, steps)):
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate(profile, epoch + step / steps)
                objective = method.loss(eyes, batch, profile, reference, epoch)
                if not torch.isfinite(objective):
                    raise TrainingError(
                        f"the loss became {objective.item()} in epoch {epoch + 1}, "
                        f"step {step + 1}; try another --seed, and look for blank or damaged "
                        "training images"
                    )
                optimiser.zero_grad()
                objective.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
                nn.utils.clip_grad_norm_(parameters, profile.clip_norm)
                optimiser.step()
                losses.append(objective.item())

            before = history[-1].seconds if history else 0.0
            seconds = before + time.perf_counter() - started
            look = epoch + 1 in (profile.epochs // 2, profile.epochs)
            done = Epoch(
                number=epoch + 1,
                of=profile.epochs,
                loss=float(np.mean(losses)),
                separation=watch.separation(network) if look else math.nan,
                seconds=seconds,
            )
            history.append(done)
            checkpoint.save(network, optimiser, history)
            on_epoch(done)
    network.eval()
    return Trained(
        network=network,
        reference=scoring,
        final_loss=history[-1].loss,
        seconds=history[-1].seconds,
    )


def _first_views(source: Source, split: Split, profile: Profile) -> Pixels:
    """Whole views of some good training images: uint8 RGB `(N, H, W, 3)`."""
    frames = (read_listed(source, item) for item in split.train_good[:_UNFOLDED_ON])
    return np.stack([view(frame, Box.around(frame), profile.view) for frame in frames])


def learning_rate(profile: Profile, epochs: float) -> float:
    """The rate of the step that begins after `epochs` epochs, which need not be whole (D21)."""
    if profile.schedule == "cosine":
        return profile.learning_rate * (1 + math.cos(math.pi * epochs / profile.epochs)) / 2
    return profile.learning_rate * profile.decay ** math.floor(epochs / profile.decay_every)


class Pass(NamedTuple):
    """What one pass says of a batch of N, and the box of each frame that it saw.

    `maps` are `(heads · N, h, w)`, head after head: each head learns as if it were alone.
    """

    maps: Maps
    boxes: list[Box]


def two_pass_loss(
    eyes: "Eyes", batch: Sequence[Sample], profile: Profile, reference: ScoreSpec, epoch: int
) -> Tensor:
    """The loss of one batch: of the scores (Eq 8-12), and of cells where their mask is known.

    A pass is judged by what it was shown: a box beside a painted defect shows a good part. Where
    the profile says so, pseudo-defects teach attention and cells only.
    """
    passes = eyes.look(batch, zoom=epoch >= profile.zoom_from)
    answers = passes[0].maps.score_map
    heads = len(answers) // len(batch)

    def of_each(values: list[bool]) -> Tensor:
        return torch.tensor(values * heads, device=answers.device)

    defective = of_each([sample.defective for sample in batch])
    known = of_each([sample.mask is not None for sample in batch])
    teaches = profile.mask_weight > 0 or profile.cell_weight > 0
    masks = [_map_masks(p, batch) for p in passes] if teaches or profile.loss_of == "each" else []
    always = profile.pseudo_scored == "always"
    judged = of_each([always or not sample.pseudo for sample in batch])
    deviations = deviation(_pass_scores(passes, profile), reference)
    if profile.loss_of == "mean":
        # γ(x)   Eq 10; the deviation is linear in the score
        mean = deviations.mean(dim=0)
        objective = deviation_loss(mean[judged], defective[judged], profile)
    else:
        shown = [defective & (mask.any(dim=2).any(dim=1) | ~known) for mask in masks]
        losses = [
            deviation_loss(d[judged], seen[judged], profile)
            for d, seen in zip(deviations, shown, strict=True)
        ]
        objective = torch.stack(losses).mean()
    # Cross-entropy refuses NaN; the caller has a better word for it.
    if teaches and torch.isfinite(objective):
        for p, mask in zip(passes, masks, strict=True):
            if profile.mask_weight:
                miss = attention_loss(p.maps.attention, mask, known)
                objective = objective + profile.mask_weight * miss / len(passes)
            if profile.cell_weight:
                miss = cell_loss(p.maps.score_map, mask, known, reference, profile)
                objective = objective + profile.cell_weight * miss / len(passes)
    return objective


def _pass_scores(passes: tuple[Pass, Pass], profile: Profile) -> Tensor:
    """s_1 and s_2 of every sample: float32 `(2, heads · N)` (Eq 8, 9); their mean is γ(x)."""
    return torch.stack([top_k_mean(p.maps.score_map, profile.top_k) for p in passes])


def _map_masks(seen: Pass, batch: Sequence[Sample]) -> Tensor:
    """The masks of the frames as the maps of one pass show them, 0 and 1: as `attention` is."""
    attention = seen.maps.attention
    masks = torch.zeros(len(batch), *attention.shape[1:])
    for row, sample, box in zip(masks, batch, seen.boxes, strict=True):
        if sample.mask is not None:
            row.copy_(torch.from_numpy(cells(sample.mask, box, *row.shape)))
    return masks.repeat(len(attention) // len(batch), 1, 1).to(attention.device)


class Eyes:
    """Both passes over a batch, with gradient; views are made by the engine, on the CPU.

    Boxes come from detached maps: no gradient flows through them, it flows through what both
    passes see (D8).
    """

    def __init__(self, network: AtacNet, profile: Profile, pool: Executor) -> None:
        self.network = network
        self._profile = profile
        self._pool = pool
        self._bf16 = has_bf16(network.mean.device)
        self._views: Kept[int, Pixels] = Kept(limit=_FEATURES_LIMIT // 4)
        self._features: Kept[int, Tensor] = Kept(limit=_FEATURES_LIMIT)

    def look(self, batch: Sequence[Sample], *, zoom: bool = True) -> tuple[Pass, Pass]:
        """Both passes over `batch` (Eq 3-7); without `zoom` the second repeats the first (D24)."""
        spec, crop = self._profile.view, self._profile.crop
        wholes, features = self._first_look(batch)
        maps = self._maps(features)
        first = Pass(maps, [Box.around(sample.pixels) for sample in batch])
        if not zoom:
            return first, first

        # All heads look where they point together.
        each = maps.attention.detach().cpu().numpy()  # (heads · N, h, w)
        attention = each.reshape(-1, len(batch), *each.shape[1:]).mean(axis=0)
        boxes = [attention_box(a, spec.box, crop) for a in attention]  # Eq 4 and 5
        closer = list(
            self._pool.map(
                lambda sample, whole, box: (
                    (whole, Box.around(sample.pixels))
                    if box == spec.box
                    else zoomed(sample.pixels, whole, box, spec)
                ),
                batch,
                wholes,
                boxes,
            )
        )  # Eq 6
        zooms = [i for i, box in enumerate(boxes) if box != spec.box]
        features = self._second_features(features, [view for view, _ in closer], zooms)
        return first, Pass(self._maps(features), [box for _, box in closer])

    def features(self, batch: Sequence[Sample]) -> Tensor:
        """What the trunk says of the whole views of `batch`: `(N, C, h, w)`."""
        return self._first_look(batch)[1]

    def good_views(self, images: TrainingImages, rng: np.random.Generator) -> Iterator[Tensor]:
        """Features `(C, h, w)` of good images, each whole and closer, one after the other.

        Of more than a memory needs, so many drawn by `rng`.
        """
        chosen: Sequence[int] = images.good
        if len(chosen) > _REMEMBERED:
            chosen = sorted(rng.permutation(len(images.good))[:_REMEMBERED].tolist())
        for index in chosen:
            good = original(images, index)
            whole = self._whole(good)
            closer = closer_view(good.pixels, whole, self._profile, rng)
            yield self._remembered(index, whole)
            yield self._seen([closer])[0].half()

    def _whole(self, sample: Sample) -> Pixels:
        def make() -> Pixels:
            return view(sample.pixels, Box.around(sample.pixels), self._profile.view)

        if sample.index is None:
            return make()
        return self._views.get(sample.index, make, lambda v: v.nbytes)

    def _first_look(self, batch: Sequence[Sample]) -> tuple[list[Pixels], Tensor]:
        wholes = list(self._pool.map(self._whole, batch))
        if not self.network.frozen:
            return wholes, self._seen(wholes)
        rows = [
            self._seen([whole])[0]
            if sample.index is None
            else self._remembered(sample.index, whole).float()
            for sample, whole in zip(batch, wholes, strict=True)
        ]
        return wholes, torch.stack(rows)

    def _remembered(self, index: int, whole: Pixels) -> Tensor:
        """What the trunk says of `whole`; in half precision, as it waits in memory."""

        def look() -> Tensor:
            return self._seen([whole])[0].half()

        return self._features.get(index, look, lambda features: features.nbytes)

    def _second_features(
        self, first: Tensor, views: Sequence[Pixels], zooms: Sequence[int]
    ) -> Tensor:
        if not self.network.frozen:
            return self._seen(views)
        if not zooms:
            return first
        closer = self._seen([views[i] for i in zooms])
        return first.index_copy(0, torch.tensor(zooms, device=first.device), closer)

    def _seen(self, views: Sequence[Pixels]) -> Tensor:
        stack = torch.from_numpy(np.stack(views)).to(self.network.mean.device)
        with torch.set_grad_enabled(not self.network.frozen), self._autocast():
            return self.network.features(stack)

    def _maps(self, features: Tensor) -> Maps:
        with self._autocast():
            head = self.network.head
            maps = head.each(features) if isinstance(head, AttentionHead) else head(features)
        return Maps(*(one.float() for one in maps))

    def _autocast(self) -> torch.autocast:
        """Trunk and head multiply in bf16 where the hardware has it; losses stay in fp32."""
        return torch.autocast(self.network.mean.device.type, torch.bfloat16, enabled=self._bf16)


class _Watch:
    """Held-out good and known defective images, inspected as the line would."""

    def __init__(
        self, source: Source, split: Split, profile: Profile, reference: ScoreSpec
    ) -> None:
        good = split.held_out_good[:_WATCHED]
        watched = (*good, *split.train_defective) if good and split.train_defective else ()
        self._frames = [read_listed(source, item) for item in watched]
        self._defective = [item.defective for item in watched]
        self._optics = TrainedOptics(view=profile.view, crop=profile.crop, score=reference)

    def separation(self, network: AtacNet) -> float:
        """AUROC of the watched images; NaN when there are none of a kind."""
        if not self._frames:
            return math.nan
        with TorchBackend(network) as backend:
            inspector = TwoPassInspector(backend, self._optics)
            scores = [inspector.inspect(frame).score for frame in self._frames]
        return auroc(np.array(scores), np.array(self._defective))


class _Checkpoint:
    """The state of a training after its last whole epoch, in one safetensors file."""

    def __init__(self, path: Path, *, identity: str) -> None:
        self._path = path
        self._identity = identity

    def save(
        self, network: AtacNet, optimiser: torch.optim.Optimizer, history: Sequence[Epoch]
    ) -> None:
        tensors = {f"network.{name}": t for name, t in network.state_dict().items()}
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items()}
        told = json.dumps([asdict(epoch) for epoch in history])
        data = safetensors.torch.save(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            {"identity": self._identity, "history": told},
        )
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, data)
        except OSError as error:
            raise TrainingError(
                f"epoch {len(history)} cannot be saved ({error.strerror}: {self._path}); "
                "make room, then go on with --resume"
            ) from error

    def load(self, network: AtacNet, optimiser: torch.optim.Optimizer) -> list[Epoch]:
        """Restore both; returns the whole epochs so far."""
        try:
            with safetensors.safe_open(self._path, "pt") as file:
                metadata = file.metadata()
            tensors = safetensors.torch.load_file(self._path)
        except FileNotFoundError:
            return []  # interrupted before the first epoch ended
        except (OSError, safetensors.SafetensorError) as error:
            raise TrainingError(
                f"{self._path} is damaged ({error}); start again without --resume"
            ) from error
        if metadata["identity"] != self._identity:
            raise ConfigurationError(
                "--resume",
                str(self._path),
                "was left by a training with other images, other weights, another profile or "
                "another seed; repeat its options, or start again without --resume",
            )
        prefix = "network."
        network.load_state_dict(
            {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        )
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = tensor
        optimiser.load_state_dict(
            {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
        )
        return [Epoch(**epoch) for epoch in json.loads(metadata["history"])]


def balanced_batches(
    images: TrainingImages, defects: "Defects", profile: Profile, rng: np.random.Generator
) -> Iterator[list[Sample]]:
    """Batches without end, half good and half defective (D17).

    A good image returns only after all the others had their turn, and so does a known defect.
    """
    good, known = in_turn(images.good, rng), in_turn(images.defective, rng)
    half = profile.batch // 2
    while True:
        batch = [original(images, next(good)) for _ in range(half)]
        for _ in range(half):
            real = len(images.defective) > 0 and rng.random() < profile.real_share
            batch.append(defects.known(next(known), rng) if real else defects.pseudo(rng))
        yield batch


def in_turn(indices: Sequence[int], rng: np.random.Generator) -> Iterator[int]:
    """`indices` without end, each again only after all the others."""
    while True:
        yield from (indices[i] for i in rng.permutation(len(indices)))


def original(images: TrainingImages, index: int) -> Sample:
    """Training image `index` as it is."""
    return Sample(
        pixels=images.frame(index),
        mask=images.mask(index),
        defective=index in images.defective,
        index=index,
    )


class Defects:
    """The defective half of the batches: known defects, moved or not, and pseudo-defects.

    What the profile wants shown again is made from a seed of its own and kept, so that it is the
    same in every epoch and after an interruption. `located` are the known defects whose masks are
    known and teach.
    """

    def __init__(self, images: TrainingImages, profile: Profile, *, seed: int) -> None:
        self._images = images
        self._profile = profile
        self._seed = seed
        self._kept: Kept[int, Sample] = Kept(limit=_FEATURES_LIMIT)
        self.located = (
            [index for index in images.defective if np.any(images.mask(index))]
            if profile.known_masks
            else []
        )

    def known(self, index: int, rng: np.random.Generator) -> Sample:
        """Training image `index`, a known defect, in one of its versions."""
        if not self._profile.moved_each:
            return self._labelled(index)
        version = int(rng.integers(self._profile.moved_each))
        key = self._key(2 * (index * self._profile.moved_each + version))

        def make() -> Sample:
            shown = self._labelled(index)
            pixels, mask = moved(shown.pixels, shown.mask, np.random.default_rng([self._seed, key]))
            return replace(shown, pixels=pixels, mask=mask, index=key)

        return self._kept.get(key, make, lambda sample: sample.pixels.nbytes)

    def pseudo(self, rng: np.random.Generator) -> Sample:
        """A pseudo-defect: one of those kept, or a new one."""
        if not self._profile.pseudo_each:
            return self._painted(rng)
        number = int(rng.integers(self._profile.pseudo_each * len(self._images.good)))
        key = self._key(2 * number + 1)

        def make() -> Sample:
            return replace(self._painted(np.random.default_rng([self._seed, key])), index=key)

        return self._kept.get(key, make, lambda sample: sample.pixels.nbytes)

    def _key(self, number: int) -> int:
        return self._images.defective.stop + number

    def _labelled(self, index: int) -> Sample:
        shown = original(self._images, index)
        return shown if index in self.located else replace(shown, mask=None)

    def _painted(self, rng: np.random.Generator) -> Sample:
        good = self._images.good
        pixels = self._images.frame(good[int(rng.integers(len(good)))])
        if self.located and rng.random() < self._profile.transplanted:
            index = self.located[int(rng.integers(len(self.located)))]
            mask = self._images.mask(index)
            assert mask is not None
            donor = alike(self._images.frame(index), pixels)
            changed, mask = transplanted(pixels, donor, mask, rng)
            return Sample(pixels=changed, mask=mask, defective=True, index=None, pseudo=True)
        donor = pixels
        if rng.random() >= _SAME_DONOR:
            donor = alike(self._images.frame(good[int(rng.integers(len(good)))]), pixels)
        changed, mask = paint(self._profile.pseudo_defects, pixels, donor, rng)
        return Sample(pixels=changed, mask=mask, defective=True, index=None, pseudo=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What tells one way of learning from another; trunk, images and loop are the same for all.

    `network` builds it. `batches` goes on without end; the loop takes what an epoch needs. `loss`
    is that of one batch in one epoch, counted from 0.
    """

    network: Callable[[Profile], AtacNet]
    batches: Callable[
        [TrainingImages, Defects, Profile, np.random.Generator], Iterator[list[Sample]]
    ]
    loss: Callable[[Eyes, Sequence[Sample], Profile, ScoreSpec, int], Tensor]


ATAC_NET: Final = Method(network=AtacNet, batches=balanced_batches, loss=two_pass_loss)


def _described(weights: PretrainedWeights | None) -> str:
    if weights is None:
        return "none"
    return f"{weights.source} ({weights.form}, tensors' SHA-256 {weights.sha256[:16]})"


def has_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies in bf16 itself: an emulation would only be slower."""
    if device.type == "cuda":
        supported: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return supported
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def deterministic(seed: int) -> torch.device:
    """Seed torch, make its results repeatable on this machine, and choose the device."""
    torch.manual_seed(seed)
    cuda = torch.cuda.is_available()
    if cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # A few CUDA gradients have no repeatable form; there a warning is better than no training.
    torch.use_deterministic_algorithms(mode=True, warn_only=cuda)
    return torch.device("cuda" if cuda else "cpu")
