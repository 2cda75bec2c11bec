"""The ledger → Markdown: measured figures come from the ledger, the papers' from `cited`."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

from benchmarks.tables.cited import cited, goal
from benchmarks.tables.compare import Pair, auroc_of, paired_difference
from benchmarks.tables.promise import LIMITS, mean_promise, promise_of
from benchmarks.tables.rows import OPTIONS, ROWS, changed_by, flat, row_of
from benchmarks.tables.runs import CONFIDENCE, Record, Run, is_of_today
from benchmarks.tables.sets import DEFECTS, FOLDS, in_order, manifest_path
from engine.pages.text import percent

Cells = dict[tuple[str, int], dict[int, Record]]  # (set, defects) → draw → record
Folds = dict[str, dict[tuple[int, int], Record]]  # set → (draw, fold) → record


def report(records: Iterable[Record]) -> str:
    """All tables, as one Markdown page."""
    known = of_today(records)
    usual = by_row(r for r in known if r.run.kind is None and r.run.fold is None)
    unseen = [record for record in known if record.run.kind is not None]
    validated = by_option(record for record in known if record.run.fold is not None)
    parts = [
        "# Detection quality on real images",
        "Written by `python -m benchmarks.tables report`; do not edit.",
        _provenance(known),
        *(_found(usual, defects) for defects in DEFECTS if _sets_with(usual, defects)),
        *([_found_by_type(usual)] if "line" in usual else []),
        *(_overview(usual, defects) for defects in DEFECTS if _sets_with(usual, defects)),
        *([_goals(usual), _against(usual)] if "line" in usual else []),
        _details(usual),
        *([_generalisation(unseen)] if unseen else []),
        *([_options(validated)] if "line" in validated else []),
    ]
    return "\n\n".join(parts) + "\n"


def of_today(records: Iterable[Record]) -> list[Record]:
    """The records of each row's last settings, and of today's splits: others do not compare.

    Nor do those of rows that are no more.
    """
    records = sorted(
        (record for record in records if record.run.row in ROWS | OPTIONS),
        key=lambda record: record.finished,
    )
    last = {record.run.row: record for record in records}
    return [
        record
        for record in records
        if record.recipe == last[record.run.row].recipe
        and record.pretrained == last[record.run.row].pretrained
        and record.pretrained_sha256 in (None, last[record.run.row].pretrained_sha256)
        and manifest_path(record.run.set).exists()  # not so of a set that was drawn elsewhere
        and is_of_today(record)
    ]


def by_row(records: Iterable[Record]) -> dict[str, Cells]:
    """Row → (set, defects) → draw → record, in the order of the tables."""
    found: dict[str, Cells] = {row: defaultdict(dict) for row in ROWS}
    for record in sorted(records, key=lambda r: r.run.draw):
        run = record.run
        found[run.row][run.set, run.defects][run.draw] = record
    return {row: cells for row, cells in found.items() if cells}


def by_option(records: Iterable[Record]) -> dict[str, Folds]:
    """Row → set → (draw, fold) → record, in the order of the table.

    Of an option only what differs from `line` in that option alone: `line` may have changed since.
    """
    records = list(records)
    found: dict[str, Folds] = {row: defaultdict(dict) for row in ("line", *OPTIONS)}
    today = flat(next((record.recipe for record in records if record.run.row == "line"), {}))
    for record in records:
        run = record.run
        assert run.fold is not None
        changed, own = changed_by(run.row), flat(record.recipe)
        if _without(own, changed) == _without(today, changed):
            found[run.row][run.set][run.draw, run.fold] = record
    return {row: folds for row, folds in found.items() if folds}


def _without(settings: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """Settings but for these, and for what is below them: older records may have more of it."""
    above = tuple(f"{name}." for name in names)
    return {
        name: value
        for name, value in settings.items()
        if name not in names and not name.startswith(above)
    }


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over draws."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{fmean(values):.3f} ± {stdev(values):.3f}"


def counted(values: Sequence[float]) -> str:
    """As `spread`, and how many draws there are."""
    return f"{spread(values)} ({len(values)})"


def _provenance(records: Sequence[Record]) -> str:
    def each(values: Iterable[object]) -> str:
        return ", ".join(sorted({str(value) for value in values})) or "–"

    backbones = (r.recipe["backbone"] for r in records)
    stages = (f"{b['architecture']} {'+'.join(b['stages'])}" for b in backbones)
    return "\n".join(
        [
            (
                f"- pretrained: {each(r.pretrained for r in records)}; backbones end at the "
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


def of_known(defects: int) -> str:
    """`1 known defect`, `10 known defects`."""
    return f"{defects} known defect{'s' if defects > 1 else ''}"


def _found(rows: dict[str, Cells], defects: int) -> str:
    """What every row finds at the promise on every set, and what it rejects."""
    sets = _sets_with(rows, defects)
    limit = percent(LIMITS[0])
    lines = [
        f"## Defects found with {of_known(defects)}, at most {limit} of good parts rejected",
        "",
        (
            f"Share of the test's defects above the threshold that promises at most {limit} false "
            f"rejects with {percent(CONFIDENCE)} confidence, ± over draws; behind it what the good "
            f"parts can promise where they are too few for {limit} (it takes 99). No model that "
            "has seen a good part scores it for the threshold. A row with cross-fitted scores uses "
            "those, and what it *rejects* of the test's good parts is shown; else the parts that "
            "were held out and those of the test are parted in all ways, four fifths of them set "
            "the threshold, and what is rejected is known by counting."
        ),
        "",
        _table_row(["row", *sets, "mean found"]),
        _table_row(["---"] * (len(sets) + 2)),
    ]
    for row, cells in rows.items():
        draws = {
            name: list(cells[name, defects].values()) for name in sets if (name, defects) in cells
        }
        if not draws:
            continue
        texts, means = [], []
        for name in sets:
            records = draws.get(name, [])
            texts.append(_promise_text(records) if records else "–")
            if records:
                means.append(mean_promise(records, limit=LIMITS[0]).found)
        few = "" if len(means) == len(sets) else f", {len(means)} of {len(sets)} sets"
        lines.append(_table_row([ROWS[row].title, *texts, f"{fmean(means):.3f}{few}"]))
    return "\n".join(lines)


def _promise_text(records: Sequence[Record]) -> str:
    every = [promise_of(record, limit=LIMITS[0]) for record in records]
    mean = mean_promise(records, limit=LIMITS[0])
    text = spread([one.found for one in every])
    if mean.promised > LIMITS[0]:
        text += f" at ≤ {percent(mean.promised, digits=2)}"
    if mean.false_rejects is not None:
        text += f"; rejects {percent(mean.false_rejects, digits=2)}"
    return text


def _found_by_type(rows: dict[str, Cells]) -> str:
    """What `line` finds of each type of defect at both limits."""
    lines = [
        "## Types of defects found by `line`",
        "",
        "As above, each type of the test by itself.",
        "",
        _table_row(
            [
                "set",
                "known defects",
                "type",
                "of a draw's test",
                *(f"≤ {percent(r)}" for r in LIMITS),
            ]
        ),
        _table_row(["---"] * (4 + len(LIMITS))),
    ]
    for (name, defects), draws in sorted(rows["line"].items()):
        records = list(draws.values())
        test = records[0].run.split().test
        kinds = sorted({item.kind for item in test if item.defective})
        for kind in kinds if len(kinds) > 1 else ():
            shares = []
            for limit in LIMITS:
                mean = mean_promise(records, limit=limit, kind=kind)
                weaker = f" at ≤ {percent(mean.promised, digits=2)}"
                shares.append(f"{mean.found:.3f}{weaker if mean.promised > limit else ''}")
            of = sum(item.kind == kind for item in test)
            lines.append(_table_row([name, str(defects), kind, str(of), *shares]))
    return "\n".join(lines)


def _overview(rows: dict[str, Cells], defects: int) -> str:
    """AUROC of every row on every set, the paper's figure beside it."""
    sets = _sets_with(rows, defects)
    lines = [
        f"## AUROC with {of_known(defects)}",
        "",
        _table_row(["row", *sets, "mean"]),
        _table_row(["---"] * (len(sets) + 2)),
    ]
    for row, cells in rows.items():
        draws = {name: _aurocs(cells[name, defects]) for name in sets if (name, defects) in cells}
        if not draws:
            continue
        texts = []
        for name in sets:
            values = list(draws.get(name, {}).values())
            texts.append(_beside_cited(values, cited(name, row, defects)))
        lines.append(_table_row([ROWS[row].title, *texts, _mean_of_sets(draws, len(sets))]))
    return "\n".join(lines)


def _sets_with(rows: Mapping[str, Cells], defects: int) -> list[str]:
    return in_order(name for cells in rows.values() for name, known in cells if known == defects)


def _beside_cited(values: Sequence[float], figure: float | None) -> str:
    measured = counted(values) if values else "–"
    return measured if figure is None else f"{measured}; cited {figure:.3f}"


def _mean_of_sets(draws: Mapping[str, Mapping[int, float]], sets: int) -> str:
    """The mean over sets of the means over draws; its deviation over draws that all sets have."""
    shared = set.intersection(*(set(values) for values in draws.values()))
    if len(shared) > 1 and all(set(values) == shared for values in draws.values()):
        text = counted([fmean(v[draw] for v in draws.values()) for draw in sorted(shared)])
    else:
        text = f"{fmean(fmean(values.values()) for values in draws.values()):.3f}"
    return text if len(draws) == sets else f"{text}, {len(draws)} of {sets} sets"


def _goals(rows: dict[str, Cells]) -> str:
    """What `line` is to reach, and whether it does."""
    lines = [
        "## Goals of `line`",
        "",
        "The paper's figure, less 0.003 where that is 1.000, or a higher one set for this project.",
        "",
        _table_row(["set", "known defects", "goal", "`line`", "reached"]),
        _table_row(["---"] * 5),
    ]
    for (name, defects), draws in sorted(rows.get("line", {}).items()):
        wanted, values = goal(name, defects), list(_aurocs(draws).values())
        if wanted is not None:
            reached = "yes" if fmean(values) >= wanted else f"{fmean(values) - wanted:+.3f}"
            lines.append(
                _table_row([name, str(defects), f"{wanted:.3f}", counted(values), reached])
            )
    return "\n".join(lines)


def _against(rows: dict[str, Cells]) -> str:
    """`line` less each other row, on the splits that both have."""
    lines = [
        "## `line` less the others",
        "",
        (
            "Mean difference in AUROC on the splits that both rows have, with its paired bootstrap "
            "interval at 95 %: good and defective test images and draws are drawn anew, the same "
            "for both rows. The last column draws the sets anew as well."
        ),
        "",
        _table_row(
            ["less", "known defects", "set", "draws", "difference", "95 %", "95 %, sets like these"]
        ),
        _table_row(["---"] * 7),
    ]
    for row, cells in rows.items():
        for defects in DEFECTS:
            pairs = {
                name: [
                    (mine, cells[name, defects][draw])
                    for draw, mine in rows.get("line", {}).get((name, defects), {}).items()
                    if draw in cells.get((name, defects), {})
                ]
                for name in in_order(name for name, _ in cells)
            }
            pairs = {name: draws for name, draws in pairs.items() if draws}
            if row == "line" or not pairs:
                continue
            lines += [
                _table_row([ROWS[row].title, str(defects), *_difference(name, {name: draws})])
                for name, draws in pairs.items()
            ]
            if len(pairs) > 1:
                mean = _difference(f"**mean of {len(pairs)}**", pairs)
                lines.append(_table_row([ROWS[row].title, str(defects), *mean]))
    return "\n".join(lines)


def _difference(name: str, pairs: Mapping[str, Sequence[Pair]]) -> list[str]:
    found = paired_difference(pairs)
    wider = paired_difference(pairs, resample_sets=True) if len(pairs) > 1 else None
    return [
        name,
        str(sum(len(draws) for draws in pairs.values())),
        f"{found.mean:+.3f}",
        f"{found.low:+.3f} … {found.high:+.3f}",
        "" if wider is None else f"{wider.low:+.3f} … {wider.high:+.3f}",
    ]


def _options(rows: dict[str, Folds]) -> str:
    """What each option of `line` is worth, on validation folds alone."""
    sets = in_order(name for folds in rows.values() for name in folds)
    lines = [
        "## Options of `line`, validated",
        "",
        (
            f"AUROC on validation folds: half of the {max(DEFECTS)} known defects and a third of "
            f"the good images of a draw, by a training on the rest ({FOLDS} folds a draw; no test "
            "image is seen; in brackets how many folds). The last columns are `line` less the row "
            "on the folds that both have, and its paired bootstrap interval at 95 %: above 0 "
            "`line` does better."
        ),
        "",
        _table_row(
            ["row", "what is different", *sets, "mean", "`line` less it", "95 %", "training s"]
        ),
        _table_row(["---"] * (6 + len(sets))),
    ]
    for row, folds in rows.items():
        draws = {name: _drawn(folds[name]) for name in sets if name in folds}
        texts = [
            f"{fmean(draws[name].values()):.3f} ({len(folds[name])})" if name in draws else "–"
            for name in sets
        ]
        pairs = {
            name: [(mine, folds[name][at]) for at, mine in line.items() if at in folds[name]]
            for name, line in rows["line"].items()
            if name in folds
        }
        pairs = {name: both for name, both in pairs.items() if both}
        worth = paired_difference(pairs) if pairs and row != "line" else None
        seconds = [r.train_seconds for of_set in folds.values() for r in of_set.values()]
        lines.append(
            _table_row(
                [
                    f"`{row}`",
                    "" if row == "line" else row_of(row).title,
                    *texts,
                    _mean_of_sets(draws, len(sets)),
                    "" if worth is None else f"{worth.mean:+.3f}",
                    "" if worth is None else f"{worth.low:+.3f} … {worth.high:+.3f}",
                    f"{fmean(seconds):.0f}",
                ]
            )
        )
    return "\n".join(lines)


def _drawn(folds: Mapping[tuple[int, int], Record]) -> dict[int, float]:
    """Draw → AUROC over its folds."""
    draws: dict[int, list[Record]] = defaultdict(list)
    for (draw, _), record in folds.items():
        draws[draw].append(record)
    return {draw: auroc_of(records) for draw, records in draws.items()}


def _details(rows: dict[str, Cells]) -> str:
    """All the other figures of each cell."""
    lines = [
        "## Details",
        "",
        (
            "*found*, *promised* and *rejected* are at the lower limit, "
            f"{percent(LIMITS[1])} (it takes 299 good parts), or at what the good parts can "
            "promise."
        ),
        "",
        (
            "| row | set | known | found | promised | rejected | AP | FPR at 95 % TPR "
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
    at = [promise_of(record, limit=LIMITS[1]) for record in records]
    pixels = [record.pixels for record in records if record.pixels is not None]

    def mean(values: Iterable[float | None]) -> str:
        there = [value for value in values if value is not None]
        return spread(there) if there else "–"

    return [
        mean(one.found for one in at),
        f"{max(one.promised for one in at):.3f}",
        mean(one.false_rejects for one in at),
        mean(ranking.average_precision for ranking in rankings),
        mean(ranking.fpr_at_95_tpr for ranking in rankings),
        mean(one.auroc for one in pixels),
        mean(one.aupro for one in pixels),
        mean(record.zoomed_good for record in records),
        f"{fmean(record.train_seconds for record in records):.0f}",
    ]


def _generalisation(records: Sequence[Record]) -> str:
    """Known defects of one type, tested on the others."""
    rows = [row for row in ROWS if any(record.run.row == row for record in records)]
    cells: dict[Run, list[float]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.run.draw):
        cells[replace(record.run, draw=0)].append(_auroc(record))
    lines = [
        "## Unseen types of defect",
        "",
        (
            "AUROC of good parts against all types but the one whose images were known, as many of "
            "them as there are."
        ),
        "",
        _table_row(["set", "known type", "known", *(ROWS[row].title for row in rows)]),
        _table_row(["---"] * (3 + len(rows))),
    ]
    for name, defects in _places(cells):
        kinds = sorted(
            {str(run.kind) for run in cells if (run.set, run.defects) == (name, defects)}
        )
        of_rows = {
            row: {
                kind: cells[run]
                for kind in kinds
                if (run := Run(set=name, row=row, defects=defects, draw=0, kind=kind)) in cells
            }
            for row in rows
        }
        for kind in kinds:
            run = Run(set=name, row=rows[0], defects=defects, draw=0, kind=kind)
            texts = (
                _beside_cited(found.get(kind, []), cited(name, row, defects, kind=kind))
                for row, found in of_rows.items()
            )
            known = len(run.split().train_defective)
            lines.append(_table_row([name, kind, str(known), *texts]))
        means = (
            f"**{fmean(fmean(values) for values in found.values()):.3f}**"
            if len(found) == len(kinds)
            else "–"
            for found in of_rows.values()
        )
        lines.append(_table_row([name, "**mean**", "", *means]))
    return "\n".join(lines)


def _places(runs: Iterable[Run]) -> list[tuple[str, int]]:
    """The sets of `runs`, each with its numbers of known defects, in the order of the tables."""
    found = {(run.set, run.defects) for run in runs}
    return [
        (name, n) for name in in_order(s for s, _ in found) for n in DEFECTS if (name, n) in found
    ]


def _aurocs(draws: Mapping[int, Record]) -> dict[int, float]:
    """Draw → AUROC."""
    return {draw: _auroc(record) for draw, record in draws.items()}


def _auroc(record: Record) -> float:
    assert record.ranking.auroc is not None
    return record.ranking.auroc


def _table_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
