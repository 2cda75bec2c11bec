"""What patches of known defects are worth beside the memory bank, from kept scores.

    python -m benchmarks.detection_study.known

`benchmarks/results/known_patches.json` has a score of each good image of the pool, by a bank
without it, and of the known defects of all draws: those that the draw knows by banks without them,
the others by the whole bank. They are those of the recipe `nearest` with the closer pass, for each
weight of the patches of known defects, and of five folds of heads that learn from them too, where
it says so: each image by those that left it out. Heads see all channels (ten of the twelve draws),
or the bank's directions. Half of the good parts are looked at closer, or a fifth. Features and
products were in bf16, and the places of closer views were found once for a set. Judged are defects
of other draws, which were neither learnt from nor chosen by.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.detection_study.scores import Floats, Scores, figures
from train.recipes.nearest import OF_ONE, deepest

_KEPT: Final = Path(__file__).parents[1] / "results" / "known_patches.json"
_WEIGHTS: Final = (0.0, 0.25, 0.5, 1.0, 2.0)


def main() -> None:
    kept = json.loads(_KEPT.read_text(encoding="utf-8"))["sets"]
    print("found at 3 % (AUROC), mean over draws; weight by evidence: its mean")
    print(f"{'known':28s}{'weight':12s}" + "".join(f"{name:>16s}" for name in [*kept, "mean"]))
    all_channels = "10 with heads, all channels"
    rows_of = [(known, known) for known in (all_channels, "10 with heads", "10")]
    rows_of += [("10 with heads", all_channels)]  # on the same draws
    rows_of += [(known, known) for known in ("10 a fifth closer", "5", "2", "1")]
    for known, where in rows_of:
        print(f"draws that have {where}")
        for weight in (*_WEIGHTS, None):
            rows = [
                np.mean(
                    [judged(one, known, weight) for one in draws.values() if where in one["known"]],
                    axis=0,
                )
                for draws in kept.values()
            ]
            said = "".join(f"{f'{row[0]:.2f} ({row[1]:.3f})':>16s}" for row in rows)
            mean = np.mean(rows, axis=0)
            name = f"evidence {mean[2]:.2f}" if weight is None else f"{weight:g}"
            print(f"{known:28s}{name:14s}{said}  {mean[0]:.2f} ({mean[1]:.3f})")


def judged(one: Mapping[str, Any], known: str, weight: float | None) -> tuple[float, float, float]:
    """Found, AUROC and the weight of one draw; without a `weight`, that of the recipe."""
    good, learnt = one["good"], one["known"][known]["known"]
    scores = {each: _scores(one, known, each) for each in _WEIGHTS}
    if weight is None:
        weight = chosen({w: (s[:good], s[learnt]) for w, s in scores.items()})
    others = sorted({*range(good, len(scores[weight]))} - {*learnt})
    found = figures(Scores(scores[weight][:good], scores[weight][others]))
    return found.found, found.auroc, weight


def chosen(scores: Mapping[float, tuple[Floats, Floats]]) -> float:
    """The weight that the recipe would take by scores of good and known defective images."""
    return OF_ONE if len(scores[0.0][1]) < 2 else deepest(scores)


def _scores(one: Mapping[str, Any], known: str, weight: float) -> Floats:
    kept: Sequence[float] = one["known"][_same(known, weight)]["scores"][
        f"{weight:g}" if weight else "0"
    ]
    return np.array(kept)


def _same(known: str, weight: float) -> str:
    """Where scores without a weight are kept: which defects are known does not matter there."""
    return known if weight or "closer" in known else "10"


if __name__ == "__main__":
    main()
