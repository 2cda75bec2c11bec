"""The ledger → Markdown: measured figures come from the ledger, the papers' from `cited`."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean, stdev

import numpy as np
import numpy.typing as npt

from benchmarks.tables.cited import cited
from benchmarks.tables.rows import ROWS
from benchmarks.tables.runs import Record, Run
from benchmarks.tables.sets import DEFECTS, SETS, read_manifest, split_of

RESAMPLES = 2_000
Cells = dict[tuple[str, int], dict[int, Record]]  # (set, defects) → draw → record


def report(records: Iterable[Record]) -> str:
    """All tables, as one Markdown page."""
    known = list(records)
    usual = by_row(record for record in known if record.run.kind is None)
    unseen = [record for record in known if record.run.kind is not None]
    parts = [
        "# Detection quality on real images",
        "Written by `python -m benchmarks.tables report`; do not edit.",
        _provenance(known),
        *(_overview(usual, defects) for defects in DEFECTS),
        _against(usual),
        _details(usual),
    ]
    return "\n\n".join([*parts, *([_generalisation(unseen)] if unseen else [])]) + "\n"


def by_row(records: Iterable[Record]) -> dict[str, Cells]:
    """Row → (set, defects) → draw → record, in the order of the tables."""
    found: dict[str, Cells] = {row: defaultdict(dict) for row in ROWS}
    for record in sorted(records, key=lambda r: r.run.draw):
        run = record.run
        found[run.row][run.set, run.defects][run.draw] = record
    return {row: cells for row, cells in found.items() if cells}


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over draws, and how many there are."""
    if len(values) == 1:
        return f"{values[0]:.3f} (1)"
    return f"{fmean(values):.3f} ± {stdev(values):.3f} ({len(values)})"


def paired_difference(
    pairs: Sequence[Sequence[tuple[Record, Record]]], *, seed: int = 0
) -> tuple[float, float, float]:
    """Mean AUROC of the first less that of the second, and its 95 % bootstrap interval.

    `pairs` has for each cell of the tables the draws that both rows have. Each resample draws
    draws and, within them, good and defective test images anew, the same for both rows.
    """
    rng = np.random.default_rng(seed)
    cells = [[_Pair(one, other) for one, other in draws] for draws in pairs]
    found = np.array(
        [
            fmean(
                fmean(draws[i].resampled(rng) for i in rng.integers(len(draws), size=len(draws)))
                for draws in cells
            )
            for _ in range(RESAMPLES)
        ]
    )
    mean = fmean(fmean(pair.difference for pair in draws) for draws in cells)
    low, high = np.quantile(found, (0.025, 0.975))
    return mean, float(low), float(high)


class _Pair:
    """Two rows on the same test images; AUROC is a mean over pairs of good and defective."""

    def __init__(self, one: Record, other: Record) -> None:
        defective = _labels(one.run)
        self._wins = _wins(one, defective) - _wins(other, defective)

    @property
    def difference(self) -> float:
        return float(self._wins.mean())

    def resampled(self, rng: np.random.Generator) -> float:
        rows, columns = self._wins.shape
        chosen = self._wins[rng.integers(rows, size=rows)][:, rng.integers(columns, size=columns)]
        return float(chosen.mean())


def _wins(record: Record, defective: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """For each defective (row) and good image (column): 1 where the defective scores more."""
    scores = np.array(record.scores)
    gap = scores[defective][:, None] - scores[~defective][None, :]
    return np.asarray((gap > 0) + 0.5 * (gap == 0), dtype=np.float32)


def _labels(run: Run) -> npt.NDArray[np.bool_]:
    split = split_of(read_manifest(run.set), run.draw, defects=run.defects, kind=run.kind)
    return np.array([item.defective for item in split.test])


def _provenance(records: Sequence[Record]) -> str:
    def each(values: Iterable[object]) -> str:
        return ", ".join(sorted({str(value) for value in values})) or "–"

    stages = (f"{r.profile['architecture']} {'+'.join(r.profile['stages'])}" for r in records)
    return "\n".join(
        [
            (
                f"- pretrained: {each(r.pretrained for r in records)}; trunks end at the "
                f"deepest stage these weights have: {each(stages)}"
            ),
            f"- commits: {each(r.machine['commit'] for r in records)}",
            (
                f"- machines: {each(r.machine['cpu'] for r in records)}; "
                f"torch on: {each(r.machine['torch_device'] for r in records)}"
            ),
            (
                "- mean ± standard deviation over draws (number of draws); last epoch, raw scores, "
                "the same splits for every row"
            ),
            (
                "- *cited*: the paper's figure; of `line` and `paper` that of ATAC-Net, which had "
                "all of ResNet-50"
            ),
        ]
    )


def _overview(rows: dict[str, Cells], defects: int) -> str:
    """AUROC of every row on every set, the paper's figure beside it."""
    sets = [name for name in SETS if any((name, defects) in cells for cells in rows.values())]
    lines = [
        f"## AUROC with {defects} known defect{'s' if defects > 1 else ''}",
        "",
        _table_row(["row", *sets, "mean"]),
        _table_row(["---"] * (len(sets) + 2)),
    ]
    for row, cells in rows.items():
        texts, means = [], []
        for name in sets:
            values = [_auroc(record) for record in cells.get((name, defects), {}).values()]
            figure = cited(name, row, defects)
            beside = "" if figure is None else f"; cited {figure:.3f}"
            texts.append((spread(values) if values else "–") + beside)
            means += [fmean(values)] if values else []
        mean = f"{fmean(means):.3f}" if means else "–"
        some = f" of {len(means)} sets" if 0 < len(means) < len(sets) else ""
        lines.append(_table_row([ROWS[row].title, *texts, mean + some]))
    return "\n".join(lines)


def _against(rows: dict[str, Cells]) -> str:
    """`line` less each other row, on the splits that both have."""
    lines = [
        "## `line` less the others",
        "",
        (
            "Mean difference in AUROC over the cells and draws that both rows have, with its "
            "paired bootstrap interval at 95 % (draws and test images resampled)."
        ),
        "",
        _table_row(["less", "known defects", "sets", "draws", "difference", "95 %"]),
        _table_row(["---"] * 6),
    ]
    for row, cells in rows.items():
        for defects in DEFECTS:
            pairs = {
                name: [
                    (mine, cells[name, defects][draw])
                    for draw, mine in rows.get("line", {}).get((name, defects), {}).items()
                    if draw in cells.get((name, defects), {})
                ]
                for name in SETS
            }
            pairs = {name: draws for name, draws in pairs.items() if draws}
            if row == "line" or not pairs:
                continue
            mean, low, high = paired_difference(list(pairs.values()))
            count = sum(len(draws) for draws in pairs.values())
            lines.append(
                _table_row(
                    [
                        ROWS[row].title,
                        str(defects),
                        ", ".join(pairs),
                        str(count),
                        f"{mean:+.3f}",
                        f"{low:+.3f} … {high:+.3f}",
                    ]
                )
            )
    return "\n".join(lines)


def _details(rows: dict[str, Cells]) -> str:
    """All the other figures of each cell."""
    lines = [
        "## Details",
        "",
        (
            "Threshold: 5 % false rejects at 95 % confidence where 59 good parts are held out, "
            "else the least that so few can promise (*promised*). Rows without held-out parts have "
            "none."
        ),
        "",
        (
            "| row | set | known | AP | FPR at 95 % TPR | false rejects | misses | promised "
            "| pixel AUROC | AUPRO | good zoomed | training s |"
        ),
        _table_row(["---"] * 12),
    ]
    for row, cells in rows.items():
        for (name, defects), draws in sorted(cells.items()):
            found = list(draws.values())
            lines.append(_table_row([ROWS[row].title, name, str(defects), *_figures(found)]))
    return "\n".join(lines)


def _figures(records: Sequence[Record]) -> list[str]:
    rankings = [record.ranking for record in records]
    at = [(r.threshold, r.ranking) for r in records if r.threshold is not None]
    pixels = [record.pixels for record in records if record.pixels is not None]

    def mean(values: Iterable[float | None]) -> str:
        there = [value for value in values if value is not None]
        return f"{fmean(there):.3f}" if there else "–"

    return [
        mean(ranking.average_precision for ranking in rankings),
        mean(ranking.fpr_at_95_tpr for ranking in rankings),
        mean(threshold.false_rejects / ranking.good for threshold, ranking in at),
        mean(threshold.misses / ranking.defective for threshold, ranking in at),
        mean(threshold.promised for threshold, _ in at),
        mean(one.auroc for one in pixels),
        mean(one.aupro for one in pixels),
        mean(record.zoomed_good for record in records),
        f"{fmean(record.train_seconds for record in records):.0f}",
    ]


def _generalisation(records: Sequence[Record]) -> str:
    """Known defects of one type, tested on the others."""
    rows = [row for row in ROWS if any(record.run.row == row for record in records)]
    cells: dict[Run, list[float]] = defaultdict(list)
    for record in records:
        cells[replace(record.run, draw=0)].append(_auroc(record))
    places = sorted({replace(run, row="") for run in cells}, key=lambda run: run.key)
    lines = [
        "## Unseen types of defect",
        "",
        "AUROC of good parts against all types but the one whose images were known.",
        "",
        _table_row(["set", "known type", "known", *(ROWS[row].title for row in rows)]),
        _table_row(["---"] * (3 + len(rows))),
    ]
    for place in places:
        texts = (cells.get(replace(place, row=row)) for row in rows)
        lines.append(
            _table_row(
                [
                    place.set,
                    str(place.kind),
                    str(place.defects),
                    *(spread(values) if values else "–" for values in texts),
                ]
            )
        )
    return "\n".join(lines)


def _auroc(record: Record) -> float:
    assert record.ranking.auroc is not None
    return record.ranking.auroc


def _table_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
