"""A window from what was seen: the times of announcements and of the frames that followed them."""

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_LEAST_MS: Final = 5.0
"""At least this much is added on both sides of what was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """A window `min_ms` to `max_ms`, and what it rests on.

    `delays_ms` are the shortest, the median and the longest delay of those that were `paired`;
    `alone` announcements had no frame, and `unexpected` frames no announcement. `nearest_ms` is the
    shortest time between two announcements.
    """

    min_ms: float
    max_ms: float
    paired: int
    alone: int
    unexpected: int
    delays_ms: tuple[float, float, float]
    nearest_ms: float

    @property
    def overlaps(self) -> bool:
        """Whether the frame of one part could be taken for that of the next."""
        return self.max_ms - self.min_ms >= self.nearest_ms


def learnt(
    announced: Sequence[float], seen: Sequence[float], *, may_precede: bool = False
) -> Learnt | None:
    """The window in which `seen` follow `announced`; `None` where no two belong together.

    Args:
        announced: Times of announcements, or of part ids, in seconds and in order.
        seen: Times of frames, or of the parts that are named, likewise.
        may_precede: Whether what is seen may come first, as a part does where a reader looks at it
            afterwards. Then the nearest two belong together.

    Returns:
        What was seen, and half of its width more on either side, but at least 5 ms.
    """
    delays: dict[int, float] = {}
    unexpected = 0
    for at in seen:
        place = bisect.bisect_right(announced, at)
        near = range(max(0, place - 1), min(place + may_precede, len(announced)))
        best = min(((abs(at - announced[each]), each) for each in near), default=None)
        if best is None or best[1] in delays:
            unexpected += 1
        else:
            delays[best[1]] = (at - announced[best[1]]) * 1e3
    if not delays:
        return None
    found = sorted(delays.values())
    margin = max(_LEAST_MS, (found[-1] - found[0]) / 2)
    least = -math.inf if may_precede else 0.0
    apart = [(after - before) * 1e3 for before, after in itertools.pairwise(announced)]
    return Learnt(
        min_ms=float(max(least, math.floor(round(found[0] - margin, 3)))),
        max_ms=float(math.ceil(round(found[-1] + margin, 3))),
        paired=len(delays),
        alone=len(announced) - len(delays),
        unexpected=unexpected,
        delays_ms=(found[0], found[len(found) // 2], found[-1]),
        nearest_ms=min(apart, default=math.inf),
    )
