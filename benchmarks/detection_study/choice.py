"""What the recipe `nearest` was chosen by, and what became of the choice, from kept scores.

    python -m benchmarks.detection_study.choice            # validation: what was chosen by
    python -m benchmarks.detection_study.choice --test     # the test, looked at once

`benchmarks/results/line_v2_scores.json` has a score of each image of five sets: of good images of
the pool by banks without the image, of all others by the whole bank; of learnt heads by those of
the folds that have not seen the image. They were computed on a GPU by the methods of this package,
with 16 places for the closer view instead of any. Choices read good images of the pool and known
defects alone.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.detection_study.scores import Scores, figures, order_threshold, ranking

_KEPT: Final = Path(__file__).parents[1] / "results" / "line_v2_scores.json"
_CHOSEN: Final = "224, a fifth closer"
_SHARES: Final = {"a fifth closer": 0.2, "all closer": 1.0}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--test", action="store_true", help="the test instead of validation")
    options = parser.parse_args(arguments)
    kept = json.loads(_KEPT.read_text(encoding="utf-8"))["sets"]
    print("mean over draws (standard deviation): AUROC, found at 3 %", end="")
    print(", false rejects" if options.test else ", found at the .95 quantile")
    for option in [_CHOSEN] if options.test else _options(kept):
        for name, one in kept.items():
            rows = [tested(one, option, draw) for draw in draws_of(one, option)]
            if not options.test:
                rows = [validated(one, option, draw) for draw in draws_of(one, option)]
            if rows:
                means = zip(np.mean(rows, axis=0), np.std(rows, axis=0), strict=True)
                said = "  ".join(f"{mean:.3f} ({std:.3f})" for mean, std in means)
                print(f"{option:26s} {name:14s} {said}")


def validated(one: dict[str, Any], option: str, draw: int) -> tuple[float, float, float]:
    """Good images of the pool against known defects that were left out.

    Of heads those of the draw; else, where all draws test the same good images, those of all.
    """
    scores, drawn = scores_of(one, option, draw), one["draws"][draw]
    defects = {row for each in one["draws"] for row in each["known"]}
    if "heads" in option or not one["same_test"]:
        defects = set(drawn["known"])
    others = scores[sorted(defects)]
    found = figures(Scores(scores[drawn["pool"]], others[np.isfinite(others)]))
    return found.auroc, found.found, found.found_95


def tested(one: dict[str, Any], option: str, draw: int) -> tuple[float, float, float]:
    """The test of a draw with ten known defects: the threshold is of the pool."""
    scores, drawn = scores_of(one, option, draw), one["draws"][draw]
    all_defects = [row for row, kind in enumerate(one["kinds"]) if kind != "good"]
    good = scores[drawn["tgood"]]
    defects = scores[sorted({*all_defects} - {*drawn["known"]})]
    threshold = order_threshold(scores[drawn["pool"]])
    return (
        ranking(good, defects),
        float((defects > threshold).mean()),
        float((good > threshold).mean()),
    )


def scores_of(one: dict[str, Any], option: str, draw: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One score of each image: of a whole view, or its mean with the closer view's."""
    share = option.partition(", ")[2]
    if share not in _SHARES:
        return _kept(one, option, draw)
    whole, closer, peak = (_kept(one, f"closer {part}", draw) for part in ("1", "2", "peak"))
    gate = np.quantile(peak[one["draws"][draw]["pool"]], 1 - _SHARES[share])
    return np.where(peak >= gate, (whole + closer) / 2, whole)


def draws_of(one: dict[str, Any], option: str) -> list[int]:
    """The draws that `option` was measured on."""
    key = "closer 1" if option.partition(", ")[2] in _SHARES else option
    kept = one["scores"].get(key, {})
    if one["same_test"] and kept:
        return list(range(len(one["draws"])))
    return [int(draw) for draw in kept]


def _kept(one: dict[str, Any], key: str, draw: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    by_draw = one["scores"][key]
    found = by_draw.get(str(draw), by_draw.get("0"))  # one pool has one memory bank
    return np.array([np.nan if score is None else score for score in found])


def _options(kept: dict[str, Any]) -> Iterator[str]:
    names = dict.fromkeys(name for one in kept.values() for name in one["scores"])
    yield from (name for name in names if not name.startswith("closer"))
    yield from (f"224, {share}" for share in _SHARES)


if __name__ == "__main__":
    main()
