"""The tables, as Markdown, from the lines that `run` wrote."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

import numpy as np

from benchmarks.tables.runs import read_ledger
from benchmarks.two_stage.dcgan import DCGAN_JSON, VARIANTS, DcganResult
from benchmarks.two_stage.jobs import RESULT_JSON, SCORES, Group, Result
from benchmarks.two_stage.plan import BASE, SETS
from train.evaluate import auroc

PAPER: Final = {"mvtec_bottle": 0.95, "mvtec_pill": 0.91}
"""Pixel AUROC of the paper's Table 3."""
PAPER_TABLE_4: Final = {
    "without_attention": 0.75,
    "without_anomaly_adversarial": 0.87,
    "full": 0.92,
}
PAPER_TABLE_1: Final = {
    "base": 0.583,
    "rotation": 0.612,
    "permutation": 0.634,
    "jitter": 0.542,
    "R&P": 0.647,
    "R&P&J": 0.663,
    "semi": 0.687,
}
_TERMS: Final = {
    "without_attention": "(a) with L_adv_ano, without L_att",
    "without_anomaly_adversarial": "(b) with L_att, without L_adv_ano",
    "full": "(c) with both",
}
_TITLES: Final = {
    "reconstruction": "reconstruction loss",
    "attention_discriminator": "discriminator output",
    "adgan": "ADGAN",
    "attention_1": "largest 1 % of 1 − A",
    "attention_10": "largest 10 % of 1 − A",
}


def report(folder: Path, ledgers: Path) -> str:
    """All tables, of the results in `folder` and of the other methods' `ledgers`.

    Where views of several sizes or trainings of several lengths were measured, the tables show
    those of most trainings, and the last table all of them.
    """
    measured = [RESULT_JSON.validate_json(line) for line in _lines(folder, "jobs.jsonl")]
    small = [DCGAN_JSON.validate_json(line) for line in _lines(folder, "dcgan.jsonl")]
    most = Counter(map(_scale, measured)).most_common(1)
    found = [each for each in measured if _scale(each) == most[0][0]]
    full = [each for each in found if each.job.variant == "full"]
    parts = [
        "# The two-stage network on real images",
        _about(found),
        "## Table 3: where parts are defective, and which",
        _table_3(full),
        "## Table 4: without one loss, AUROC of pixels",
        _table_4(found),
        "## Table 5: which score, AUROC of images",
        _table_5(full),
        "## Table 1 in kind: a DCGAN and hard augmentation, AUROC of images",
        _table_1(small),
        "## Beside `line` and the memory bank, AUROC of images",
        _beside(full, ledgers),
        "## Larger views, longer trainings",
        _by_scale(measured),
    ]
    return "\n\n".join(parts) + "\n"


def _scale(result: Result) -> tuple[int, int]:
    """Side of the views, and epochs of the attention network, which all variants have."""
    return result.job.settings.view.side, result.job.settings.adgan_from


def _lines(folder: Path, name: str) -> list[bytes]:
    path = folder / name
    return path.read_bytes().splitlines() if path.exists() else []


def _about(found: Sequence[Result]) -> str:
    if not any(each.job.variant == "full" for each in found):
        return "Nothing has been measured."
    devices = sorted({each.device for each in found})
    seconds = [each.train_seconds for each in found if each.job.variant == "full"]
    sides = sorted({each.job.settings.view.side for each in found})
    epochs = sorted({each.job.settings.epochs for each in found if each.job.variant == "full"})
    return (
        f"Views of {' and '.join(map(str, sides))} px, {' and '.join(map(str, epochs))} epochs; "
        f"the recipe has {BASE.view.side} px and {BASE.epochs} epochs. "
        f"Trainings: {len(found)}, on {' and '.join(devices)}; one of both stages took "
        f"{min(seconds):.0f} to {max(seconds):.0f} s there, beside other programs. Means over "
        "draws with their standard deviation; the number of draws is in brackets where it is not "
        "three."
    )


def _spread(values: Sequence[float], digits: int = 3) -> str:
    if not values:
        return "–"
    shown = f"{fmean(values):.{digits}f}"
    if len(values) > 1:
        shown += f" ± {stdev(values):.{digits}f}"
    return shown if len(values) == 3 else f"{shown} ({len(values)})"


def _of(found: Sequence[Result], name: str) -> list[Result]:
    return sorted((r for r in found if r.job.set == name), key=lambda r: r.job.draw)


def image_auroc(group: Group, score: str) -> float:
    return auroc(np.array(group.scores[score]), np.array(group.defective))


def accuracy(result: Result) -> float:
    """The mean of the shares of good and of defective images that are judged right.

    The threshold is the highest score of a held-out good image.
    """
    held = result.groups["validation"]
    threshold = max(
        score for score, bad in zip(held.scores["adgan"], held.defective, strict=True) if not bad
    )
    tested = result.groups["unseen"]
    above = np.array(tested.scores["adgan"]) > threshold
    bad = np.array(tested.defective)
    return float((above[bad].mean() + (~above)[~bad].mean()) / 2)


def _pixels(result: Result, what: str) -> float:
    ranking = result.groups["unseen"].pixels
    assert ranking is not None
    value: float = getattr(ranking, what)
    return value


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _table_3(full: Sequence[Result]) -> str:
    def rows() -> Iterator[Sequence[str]]:
        for name in SETS:
            results = _of(full, name)
            masked = [r for r in results if r.groups["unseen"].pixels is not None]
            paper = PAPER.get(name)
            yield (
                name,
                _spread([_pixels(r, "auroc") for r in masked]),
                "–" if paper is None else f"{paper:.2f}",
                _spread([_pixels(r, "aupro") for r in masked]),
                _spread([image_auroc(r.groups["unseen"], "adgan") for r in results]),
                _spread([accuracy(r) for r in results], 2),
            )

    head = "set", "pixel AUROC", "paper", "AUPRO", "image AUROC", "classification accuracy"
    return _table(head, rows())


def _table_4(found: Sequence[Result]) -> str:
    without = {(r.job.set, r.job.draw) for r in found if r.job.variant == "without_attention"}
    names = sorted({name for name, _ in without})

    def rows() -> Iterator[Sequence[str]]:
        for variant, title in _TERMS.items():
            of_variant = [
                r for r in found if r.job.variant == variant and (r.job.set, r.job.draw) in without
            ]
            yield (
                title,
                *(_spread([_pixels(r, "auroc") for r in _of(of_variant, n)]) for n in names),
                f"{PAPER_TABLE_4[variant]:.2f}",
            )

    return _table(("losses", *names, "paper, all of MVTec"), rows())


def _table_5(full: Sequence[Result]) -> str:
    def rows() -> Iterator[Sequence[str]]:
        for score in sorted(SCORES, key=list(_TITLES).index):
            yield (
                _TITLES[score],
                *(
                    _spread([image_auroc(r.groups["unseen"], score) for r in _of(full, name)])
                    for name in SETS
                ),
            )
        yield ("CIFAR-10", *["not run here"] * len(SETS))

    return _table(("score", *SETS), rows())


def _table_1(small: Sequence[DcganResult]) -> str:
    names = sorted({each.job.set for each in small})

    def rows() -> Iterator[Sequence[str]]:
        for variant in VARIANTS:
            cells = []
            for name in names:
                of_both = [r for r in small if (r.job.variant, r.job.set) == (variant, name)]
                cells.append(
                    _spread([auroc(np.array(r.scores), np.array(r.defective)) for r in of_both])
                )
            yield (variant, *cells, "not run here", f"{PAPER_TABLE_1[variant]:.3f}")

    return _table(("trained with", *names, "CIFAR-10", "paper, CIFAR-10"), rows())


def _beside(full: Sequence[Result], ledgers: Path) -> str:
    records = read_ledger(ledgers).values()

    def of_row(name: str, row: str, defects: int) -> str:
        return _spread(
            [
                record.ranking.auroc
                for record in records
                if (record.run.set, record.run.row, record.run.defects) == (name, row, defects)
                and record.run.draw in (0, 1, 2)
                and record.run.kind is None
                and record.run.fold is None
                and record.ranking.auroc is not None
            ]
        )

    ours: Callable[[str], str] = lambda name: _spread(  # noqa: E731
        [image_auroc(r.groups["unseen"], "adgan") for r in _of(full, name)]
    )

    def rows() -> Iterator[Sequence[str]]:
        for name in SETS:
            yield (
                name,
                ours(name),
                of_row(name, "memory", 10),
                of_row(name, "line", 1),
                of_row(name, "line", 10),
            )

    head = (
        "set",
        "`two_stage`, no defect",
        "memory bank, no defect",
        "`line`, 1 defect",
        "`line`, 10 defects",
    )
    return _table(head, rows())


def _by_scale(measured: Sequence[Result]) -> str:
    """Draws that have more than one, each by itself: draws of a set differ."""
    full = [each for each in measured if each.job.variant == "full"]
    trainings = Counter((each.job.set, each.job.draw) for each in full)
    shown = [each for each in full if trainings[each.job.set, each.job.draw] > 1]

    def rows() -> Iterator[Sequence[str]]:
        for each in sorted(shown, key=lambda r: (r.job.set, r.job.draw, _scale(r))):
            settings, unseen = each.job.settings, each.groups["unseen"]
            yield (
                f"{each.job.set}, draw {each.job.draw}",
                f"{settings.view.side} px",
                str(settings.epochs),
                "–" if unseen.pixels is None else f"{unseen.pixels.auroc:.3f}",
                "–" if unseen.pixels is None else f"{unseen.pixels.aupro:.3f}",
                f"{image_auroc(unseen, 'adgan'):.3f}",
                f"{image_auroc(unseen, 'attention_discriminator'):.3f}",
                f"{image_auroc(unseen, 'reconstruction'):.3f}",
            )

    head = (
        "set",
        "views",
        "epochs",
        "pixel AUROC",
        "AUPRO",
        "image AUROC, ADGAN",
        "discriminator output",
        "reconstruction loss",
    )
    return _table(head, rows()) if shown else "Only one scale has been measured."
