"""`agent train --budget 40ms`: the views that this machine has time for, and what each would find.

Larger views show smaller defects and take longer, and so do tiles. Each side is trained and
measured here, from the smallest on, with `--tiles auto` also in tiles, and judged by scores of
models that left the part out (docs/calibration.md). The one that finds most within the budget is
kept, and what twice the time would find is said.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Final

from engine.errors import ConfigurationError, TrainingError

if TYPE_CHECKING:
    from train.recipes import RecipeSettings
    from train.run import Finished
    from train.tiles import Tiles
    from train.weights import Weights

SIDES: Final = (160, 224, 320, 448)
_MEASURED: Final = 24
"""Images that are inspected to measure the time of one."""
_LIMIT: Final = 0.03
_CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One choice: what a part takes here, and the share of the known defects found.

    `found` is at the lowest usual limit on false rejects that the good parts carry, up to
    `promised`; both are None without known defects.
    """

    side: int
    tiles: int = 1
    backbone: str = ""
    ms: float
    found: float | None
    promised: float | None
    finished: "Finished"


def milliseconds(text: str) -> float:
    """What `--budget` means: `40ms`, `40` and `0.04s` are the same."""
    written = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(ms|s)?\s*", text, flags=re.ASCII)
    value = float(written[1]) * (1000 if written[2] == "s" else 1) if written else 0.0
    if not 0 < value <= 60_000:
        raise ConfigurationError("--budget", text, "write the time of one part, as 40ms or 0.04s")
    return value


def require_evidence(settings: "RecipeSettings") -> None:
    """Raise `ConfigurationError` for a recipe that does not score images without themselves."""
    if not settings.leaves_out:
        raise ConfigurationError(
            "--budget",
            settings.type,
            "is no recipe that scores each image without it, so nothing says which views find "
            "more; use --recipe nearest",
        )


def best_within(
    budget_ms: float,
    candidates: "Sequence[tuple[RecipeSettings, Weights | None]]",
    tiles: "Tiles | None",
    out: Path,
    train: "Callable[[Path, RecipeSettings, Weights | None, Tiles | None], Finished]",
    say: Callable[[str], None],
) -> "Finished":
    """Train with views of several sides, and keep in `out` what finds most in time.

    Args:
        budget_ms: What one part may take on this machine, looked at twice.
        candidates: Settings of the recipe, and weights that fit them; more than one: as many
            backbones.
        tiles: What a frame is inspected in; `auto`: in one piece, and in as many as are needed.
        out: The folder for the bundle.
        train: Trains with such settings, weights and tiles into a folder.
        say: Hears, in a sentence, of each side and of the choice.

    Raises:
        ConfigurationError: Not even the smallest views are in time.
        TrainingError: The bundle cannot be moved to `out`.
    """
    from engine.bundle import open_bundle

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        tried: list[Tried] = []
        for number, (settings, weights) in enumerate(candidates):
            named = settings.backbone if len(candidates) > 1 else None
            backbone = "" if named is None else named.label
            of_this: list[Tried] = []
            for side, pieces in product(SIDES, (None, tiles) if tiles == "auto" else (tiles,)):
                if of_this and not _is_worth_it(of_this, side, pieces, 2 * budget_ms):
                    continue
                place = Path(folder) / f"{number}-{len(of_this)}"
                finished = train(place, settings.with_side(side), weights, pieces)
                of_this.append(replace(_tried(side, finished), backbone=backbone))
                say(_said(of_this[-1]))
            tried += of_this
        in_time = [one for one in tried if one.ms <= budget_ms]
        if not in_time:
            fastest = min(tried, key=lambda one: one.ms)
            raise ConfigurationError(
                "--budget",
                f"{budget_ms:g}ms",
                f"is too short: with the smallest views, {fastest.side} pixels, a part takes "
                f"{fastest.ms:.0f} ms on this machine",
            )
        best = chosen(in_time)
        say(f"Taken: {_named(best)}. {_of_twice_the_time(best, tried, budget_ms)}")
        try:
            if out.exists():
                out.rmdir()  # it is empty, or training had refused it
            shutil.move(best.finished.written.bundle.path, out)
        except OSError as error:
            raise TrainingError(f"{out}: cannot be made ({error.strerror})") from error
    written = replace(best.finished.written, bundle=open_bundle(out))
    return replace(best.finished, written=written)


def chosen(tried: list[Tried]) -> Tried:
    """What finds most; of those that find as much, the fastest. Without defects, the finest."""
    return max(
        tried,
        key=lambda one: (
            (one.side**2 * one.tiles, 0.0) if one.found is None else (one.found, -one.ms)
        ),
    )


def _tried(side: int, finished: "Finished") -> Tried:
    from calibration.evidence import Asked
    from calibration.price import at_promise
    from engine.cross_fitted import cross_fitted_of

    scores = cross_fitted_of(finished.written.bundle)
    good = [] if scores is None else [part.score for part in scores.good]
    defective = [] if scores is None else [part.score for part in scores.defective]
    at = None
    if good and defective:
        rate = Asked(max_false_reject=None, confidence=_CONFIDENCE).rate(len(good))
        at = at_promise(
            good, (), defective, max_false_reject=max(rate, _LIMIT), confidence=_CONFIDENCE
        )
    regions = finished.written.bundle.manifest.method.regions
    return Tried(
        side=side,
        tiles=1 if regions is None else len(regions.regions),
        ms=median(_times_ms(finished)),
        found=None if at is None else at.found,
        promised=None if at is None else at.promised,
        finished=finished,
    )


def _times_ms(finished: "Finished") -> Iterator[float]:
    """What parts take that are looked at twice; where none is, what all take."""
    from engine.backends.choice import fastest
    from engine.backends.opening import open_inspector

    bundle, split = finished.written.bundle, finished.split
    runtime = fastest(bundle)
    items = (*split.train_defective, *split.held_out_good, *split.train_good)[:_MEASURED]
    with open_inspector(
        bundle,
        backend=runtime.backend,
        precision=runtime.precision,
        fallback=None,
        max_pixels=max(finished.images.pixels(item)[..., 0].size for item in items),
    ) as inspector:
        inspector.warm_up()
        times: dict[bool, list[float]] = {True: [], False: []}
        for item in items:
            pixels = finished.images.pixels(item)
            began = perf_counter()
            found = inspector.inspect(pixels)
            times[found.zoomed].append(1e3 * (perf_counter() - began))
    return iter(times[True] or times[False])


def _is_worth_it(
    tried: "Sequence[Tried]", side: int, pieces: "Tiles | None", limit_ms: float
) -> bool:
    """Whether views of this side and these tiles are new, and may be in time.

    Args:
        tried: Of the same backbone, at least one.
        side: Of the views.
        pieces: What a frame would be inspected in.
        limit_ms: The time of a part.
    """
    from train.tiles import tiled

    last, count = tried[-1], tried[0].tiles
    if pieces == "auto":
        whole = tried[0].finished
        height, width = whole.images.pixels(whole.split.train_good[0]).shape[:2]
        regions = whole.written.bundle.manifest.method.regions
        try:
            cut = tiled(regions, pieces, frame=(width, height), side=side)
        except ConfigurationError:
            return False
        if cut is None or cut == regions:
            return False
        count = len(cut.regions)
    return last.ms * (side / last.side) ** 2 * count / last.tiles <= limit_ms


def _said(one: Tried) -> str:
    name = _named(one)
    return f"{name[0].upper()}{name[1:]}: {one.ms:.0f} ms a part on this machine{_finds(one)}."


def _named(one: Tried) -> str:
    of = f" of {one.tiles} tiles or regions" if one.tiles > 1 else ""
    return f"views of {one.side} pixels{of}" + (f" with {one.backbone}" if one.backbone else "")


def _finds(one: Tried) -> str:
    if one.found is None or one.promised is None:
        return ""
    return (
        f", {100 * one.found:.0f} of 100 known defects found where at most "
        f"{100 * one.promised:.2g} % of good parts are rejected (estimated)"
    )


def _of_twice_the_time(best: Tried, tried: list[Tried], budget_ms: float) -> str:
    slower = [one for one in tried if budget_ms < one.ms <= 2 * budget_ms]
    if not slower:
        return "With twice the time nothing finer was in reach."
    other = chosen(slower)
    if best.found is None or other.found is None:
        return f"With twice the time, {_named(other)} would be in reach."
    if other.found <= best.found:
        return "Twice the time would find no more of the known defects."
    return (
        f"With twice the time, {_named(other)} would find {100 * other.found:.0f} of "
        f"100 instead of {100 * best.found:.0f}."
    )
