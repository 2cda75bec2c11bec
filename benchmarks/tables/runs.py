"""One run: train a row on one split of one set, score the test, write a line into the ledger."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from benchmarks.machine import described
from benchmarks.tables.rows import Row, Settings, learnt, row_of, settled_settings
from benchmarks.tables.sets import (
    DEFECTS,
    fold_of,
    manifest_path,
    read_manifest,
    source_of,
    split_of,
    with_all_good,
)
from calibration.bound import upper_bound
from calibration.threshold import Threshold, choose_threshold
from engine.bundle import sha256
from engine.methods import open_method
from engine.spec import spec
from train.datasets import SPLIT_JSON, Listed, Source, Split
from train.evaluate import Ranking, Scored, evaluation, scored
from train.features import has_bf16
from train.network import TorchBackend
from train.pixels import PixelRanking
from train.recipes import RECIPE_JSON, Trained
from train.weights import Weights

CONFIDENCE = 0.95
MAX_FALSE_REJECT = 0.05  # where enough good parts are held out to promise it


@spec
class Run:
    """What is measured; `kind` is the only known type of defect, None in the usual tables.

    With a `fold` it is a validation: of the known defects and good images of the draw, a fold is
    what is tested.
    """

    set: str
    row: str
    defects: int
    draw: int
    kind: str | None = None
    fold: int | None = None

    @property
    def key(self) -> str:
        fold = None if self.fold is None else f"fold{self.fold}"
        parts = self.set, self.row, str(self.defects), str(self.draw), self.kind, fold
        return "-".join(filter(None, parts))

    @property
    def pictured(self) -> bool:
        """Whether the figures show this run: its trained state is kept for them."""
        return (self.defects, self.draw, self.kind, self.fold) == (max(DEFECTS), 0, None, None)

    def split(self) -> Split:
        """Who trains and who is tested; rows that hold out nothing train on the held-out too."""
        found = split_of(read_manifest(self.set), self.draw, defects=self.defects, kind=self.kind)
        if self.fold is not None:
            return fold_of(found, self.fold)
        return found if row_of(self.row).settings.hold_out else with_all_good(found)


@spec
class AtThreshold:
    """False rejects and misses at the threshold of the held-out good parts.

    `promised` is the false-reject rate that these parts exclude from above with 95 %: 5 % where
    they are 59 or more, else what so few can carry.
    """

    value: float
    promised: float
    false_rejects: int
    misses: int


@spec
class Record:
    """A line of the ledger; scores are raw, in the order of the split's images.

    `finished` is UTC; `machine` has the commit too. `zoomed_good` is the share of good test
    images with a pass 2. `cross_fitted_scores` are of good images that trained, each by a model
    that left it out, in the order of the recipe.
    """

    run: Run
    ranking: Ranking
    threshold: AtThreshold | None
    pixels: PixelRanking | None
    zoomed_good: float
    scores: tuple[float, ...]
    held_out_scores: tuple[float, ...]
    cross_fitted_scores: tuple[float, ...] = ()
    train_seconds: float
    test_seconds: float
    recipe: dict[str, Any]
    pretrained: str
    pretrained_sha256: str | None = None  # older records do not have it
    manifest_sha256: str
    split_sha256: str
    finished: str
    machine: dict[str, Any]


RECORD_JSON = TypeAdapter(Record)


def runs(
    *,
    sets: Sequence[str],
    rows: Sequence[str],
    defects: Sequence[int],
    draws: Iterable[int],
    unseen_kinds: bool,
) -> list[Run]:
    """All runs asked for, draw by draw, so that what is done first is of every row and set.

    With `unseen_kinds` each known type of defect is a run of its own, where there are several.
    """

    def kinds(name: str) -> Sequence[str | None]:
        if not unseen_kinds:
            return (None,)
        found = read_manifest(name).kinds
        return found if len(found) > 1 else ()

    return [
        Run(set=name, row=row, defects=known, draw=draw, kind=kind)
        for draw in draws
        for known in defects
        for name in sets
        for kind in kinds(name)
        for row in rows
    ]


def validations(
    *, sets: Sequence[str], rows: Sequence[str], draws: Iterable[int], folds: Sequence[int]
) -> list[Run]:
    """The validation runs of `rows` with the most known defects, in the order of `runs`."""
    return [
        Run(set=name, row=row, defects=max(DEFECTS), draw=draw, fold=fold)
        for draw in draws
        for fold in folds
        for name in sets
        for row in rows
    ]


def read_ledger(folder: Path) -> dict[Run, Record]:
    """The records of all ledgers in `folder`; of one run, the last one finished counts."""
    records = [
        RECORD_JSON.validate_json(line)
        for file in folder.glob("*.jsonl")
        for line in file.read_bytes().splitlines()
    ]
    return {record.run: record for record in sorted(records, key=lambda record: record.finished)}


def append(ledger: Path, record: Record) -> None:
    """Add a line to the file `ledger`, in one piece."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with ledger.open("ab", buffering=0) as file:
        file.write(RECORD_JSON.dump_json(record) + b"\n")


def is_done(run: Run, done: dict[Run, Record], weights: Weights | None) -> bool:
    """Whether the ledgers have `run` with today's settings, weights and splits."""
    record = done.get(run)
    return record is not None and (
        record.recipe == _described(settled_settings(row_of(run.row), weights))
        and record.pretrained == _source(weights)
        and record.pretrained_sha256 in (None, _sha256(weights))
        and is_of_today(record)
    )


def is_of_today(record: Record) -> bool:
    """Whether a record's scores are of the images that its run has today."""
    return record.manifest_sha256 == manifest_sha256(
        record.run.set
    ) and record.split_sha256 == split_sha256(record.run.split())


def split_sha256(split: Split) -> str:
    return sha256(SPLIT_JSON.dump_json(split))


def manifest_sha256(name: str) -> str:
    return sha256(manifest_path(name).read_bytes())


def state_folder(run: Run, weights: Weights | None) -> str:
    """The name of the folder for the state of a training; other settings or weights, another."""
    settings = RECIPE_JSON.dump_json(settled_settings(row_of(run.row), weights))
    begun = f"{manifest_sha256(run.set)} {_sha256(weights)}".encode()
    return f"{run.key}-{sha256(settings + begun)[:8]}"


def trained_for(
    run: Run,
    source: Source,
    weights: Weights | None,
    run_folder: Path,
    *,
    on_epoch: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train for `run`, or continue where its folder is in `run_folder`; the seed is the draw."""
    row = row_of(run.row)
    return learnt(
        row,
        source,
        run.split(),
        settled_settings(row, weights),
        weights=weights,
        seed=run.draw,
        run_folder=run_folder / state_folder(run, weights),
        on_epoch=on_epoch,
    )


def measured(run: Run, data: Path, weights: Weights | None, run_folder: Path) -> Record:
    """Train and test; the state lies below `run_folder`."""
    split, settings = run.split(), settled_settings(row_of(run.row), weights)
    source = source_of(read_manifest(run.set), data / run.set)
    began = time.perf_counter()
    trained = trained_for(
        run,
        source,
        weights,
        run_folder,
        on_epoch=lambda text: print(f"  {text}", file=sys.stderr, flush=True),
    )
    started = time.perf_counter()
    # All of it, also what comes before the first epoch; of an interrupted training its epochs.
    train_seconds = max(started - began, trained.history[-1].seconds)
    tested, pixels = _inspected(trained, source, split.test)
    held_out, _ = _inspected(trained, source, split.held_out_good)
    seconds = time.perf_counter() - started
    return Record(
        run=run,
        ranking=evaluation(tested, backend="torch").overall,
        threshold=_at_threshold(tested, held_out) if held_out else None,
        pixels=pixels,
        zoomed_good=float(np.mean([image.zoomed for image in tested if not image.defective])),
        scores=tuple(image.score for image in tested),
        held_out_scores=tuple(image.score for image in held_out),
        cross_fitted_scores=tuple(
            part.score for part in (trained.cross_fitted.good if trained.cross_fitted else ())
        ),
        train_seconds=round(train_seconds, 1),
        test_seconds=round(seconds, 1),
        recipe=_described(settings),
        pretrained=_source(weights),
        pretrained_sha256=_sha256(weights),
        manifest_sha256=manifest_sha256(run.set),
        split_sha256=split_sha256(split),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=described() | {"torch_device": _device(trained, row_of(run.row))},
    )


def calibrated(held_out: Sequence[float]) -> Threshold:
    """The threshold that the scores of held-out good parts carry."""
    # A little more than what these parts can carry: a bisection found it.
    least = upper_bound(0, len(held_out), confidence=CONFIDENCE) + 1e-9
    return choose_threshold(
        held_out, max_false_reject=max(MAX_FALSE_REJECT, least), confidence=CONFIDENCE
    )


def _inspected(
    trained: Trained, source: Source, items: Sequence[Listed]
) -> tuple[tuple[Scored, ...], PixelRanking | None]:
    with TorchBackend(trained.network) as backend:
        return scored(open_method(trained.method, backend), source, items)


def _at_threshold(tested: tuple[Scored, ...], held_out: tuple[Scored, ...]) -> AtThreshold:
    threshold = calibrated([image.score for image in held_out])
    found = evaluation(tested, backend="torch", threshold=threshold.value).at_threshold
    assert found is not None
    return AtThreshold(
        value=threshold.value,
        promised=threshold.guaranteed,
        false_rejects=found.false_rejects,
        misses=found.misses,
    )


def _device(trained: Trained, row: Row) -> str:
    device = trained.network.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    in_bf16 = row.learns and row.settings.descends and has_bf16(device)
    return f"{name} (backbone and heads in bf16)" if in_bf16 else name


def _described(settings: Settings) -> dict[str, Any]:
    plain: dict[str, Any] = RECIPE_JSON.dump_python(settings, mode="json")
    return plain


def _source(weights: Weights | None) -> str:
    return "nothing" if weights is None else weights.source


def _sha256(weights: Weights | None) -> str | None:
    return None if weights is None else weights.sha256
