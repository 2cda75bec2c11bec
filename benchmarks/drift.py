"""Do the tests for drift keep their rate of false alarms, and how soon do they find a change?

    python -m benchmarks.drift --out benchmarks/results/drift.json

Scores are drawn from a normal distribution; the score test knows ranks alone, so any other
continuous one gives the same. *Apart* is the mean number of parts to a false alarm while nothing
changes; lines that have none in `limit` parts count as `limit`, so the true mean is larger. *Delay*
is how many parts of the changed line pass before the alarm, at the product's own rate of false
alarms. The audit is looked at after every labelled part.
"""

import argparse
import random
import statistics
from pathlib import Path
from typing import Any

from benchmarks.machine import described, write_result
from calibration.drift import ALPHA, PARTS_BETWEEN, POOL, ScoreTest, audit

_GOOD = 299
"""Parts of the calibration."""


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=400, help="Lines of the first rows.")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    stated = [
        apart(given.lines, good=good, between=1000, pool=pool, limit=10_000)
        for good, pool in [(59, POOL), (_GOOD, POOL), (_GOOD, 1000)]
    ]
    found = [
        delay(given.lines // 8, shift=shift, spread=spread, after=after)
        for after in (500, 5_000)
        for shift, spread in [(0.25, 1), (0.5, 1), (1, 1), (-0.5, 1), (0, 1.5), (0, 0.67)]
    ]
    audits = [
        audited(2 * given.lines, promised=promised, true=true)
        for promised in (0.01, 0.05)
        for true in (promised, 2 * promised, 5 * promised)
    ]
    result = {
        "machine": described(),
        "score_test": {"stated_at_1000": stated, "delay_at": PARTS_BETWEEN, "delays": found},
        "audit": {"alpha": ALPHA, "rows": audits},
    }
    write_result(result, given.out)


def apart(lines: int, *, good: int, between: int, pool: int, limit: int) -> dict[str, Any]:
    """Parts to a false alarm, of lines on which nothing changes."""
    passed = []
    for seed in range(lines):
        draw = random.Random(seed)
        test = ScoreTest(
            (draw.gauss(0, 1) for _ in range(good)),
            threshold=99,
            parts_between=between,
            pool=pool,
            seed=seed,
        )
        alarm = (n for n in range(1, limit + 1) if test.add(draw.gauss(0, 1)))
        passed.append(next(alarm, limit))
    return {
        "good": good,
        "pool": pool,
        "stated": between,
        "apart": round(statistics.mean(passed)),
        "standard_error": round(statistics.stdev(passed) / lines**0.5),
        "without_alarm": sum(parts == limit for parts in passed),
        "lines": lines,
        "limit": limit,
    }


def delay(lines: int, *, shift: float, spread: float, after: int) -> dict[str, Any]:
    """Parts from a change to its alarm, when `after` parts have passed before it."""
    limit, passed, false = 5000, [], 0
    for seed in range(lines):
        draw = random.Random(1000 + seed)
        test = ScoreTest((draw.gauss(0, 1) for _ in range(_GOOD)), threshold=99, seed=seed)
        false += sum(test.add(draw.gauss(0, 1)) for _ in range(after)) > 0
        alarm = (n for n in range(1, limit + 1) if test.add(shift + spread * draw.gauss(0, 1)))
        passed.append(next(alarm, limit))
    passed.sort()
    return {
        "shift": shift,
        "spread": spread,
        "after": after,
        "median": passed[len(passed) // 2],
        "nine_of_ten": passed[len(passed) * 9 // 10],
        "never_in_5000": sum(parts == limit for parts in passed),
        "false": false,
        "lines": lines,
    }


def audited(lines: int, *, promised: float, true: float) -> dict[str, Any]:
    """How many audits say "broken" within 500 labels, and after how many."""
    limit, broken = 500, []
    for seed in range(lines):
        draw, above = random.Random(seed), 0
        for parts in range(1, limit + 1):
            is_above = draw.random() < true
            above += is_above
            # Only a part above the threshold can raise the stake.
            if is_above and audit(above, parts, promised=promised).is_broken:
                broken.append(parts)
                break
    return {
        "promised": promised,
        "true": true,
        "broken": round(len(broken) / lines, 4),
        "median_labels": statistics.median(broken) if broken else None,
        "lines": lines,
    }


if __name__ == "__main__":
    main()
