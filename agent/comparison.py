"""What would change: evidence of the last days, judged by another bundle or another threshold.

Evidence has the frames of alarms, of doubtful parts and of those drawn for the audit. A part that
was clearly OK has no frame, so what another bundle would say of it is not known here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.part import State, decide
from agent.record.evidence_files import Filed
from engine.bundle import replace_file
from engine.errors import ConfigurationError, ImageError
from engine.frame import Pixels
from engine.image import read_image
from engine.inspector import Inspector
from engine.pages.rendering import render
from engine.pages.text import counted
from engine.picture import annotated, reduced

_SIDE: Final = 480
SHOWN: Final = 60
"""Changes that have a picture; all are counted."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Changed:
    """A part whose verdict would be another one; `picture` where there is room for it."""

    filed: Filed
    new_score: float
    new_state: State
    picture: Pixels | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """Of `judged` parts with a frame, those whose verdict would change; `unreadable` are left out.

    `with_what` names the bundle or the threshold.
    """

    with_what: str
    judged: int
    unreadable: int
    changed: tuple[Changed, ...]

    def to(self, state: State) -> list[Changed]:
        """Those that would be `state` now."""
        return [one for one in self.changed if one.new_state is state]

    @property
    def statement(self) -> str:
        """What came of it, in one sentence."""
        return (
            f"With {self.with_what}, {len(self.changed)} of {counted(self.judged, 'kept part')} "
            f"would have another verdict: {len(self.to(State.OK))} NG would be OK, "
            f"{len(self.to(State.NG))} OK would be NG."
        )


def by_threshold(folder: Path, files: Sequence[Filed], threshold: float) -> Comparison:
    """Judge by another threshold, by the scores that the parts had."""
    changed: list[Changed] = []
    for filed in files:
        score = filed.score
        assert score is not None
        state = State.NG if score > threshold else State.OK
        if state is not filed.state:
            picture = _seen(folder / filed.name) if len(changed) < SHOWN else None
            changed.append(Changed(filed=filed, new_score=score, new_state=state, picture=picture))
    return Comparison(
        with_what=f"the threshold {threshold:.4g}",
        judged=len(files),
        unreadable=0,
        changed=tuple(changed),
    )


def by_bundle(
    folder: Path, files: Iterable[Filed], inspector: Inspector, threshold: float, *, name: str
) -> Comparison:
    """Judge by another bundle: its network and its threshold.

    Args:
        folder: Where the files lie.
        files: Which are judged.
        inspector: The bundle's.
        threshold: The bundle's.
        name: The bundle's, for people.
    """
    changed: list[Changed] = []
    judged = unreadable = pictures = 0
    for filed in files:
        try:
            pixels = read_image(folder / filed.name)
        except ImageError:
            unreadable += 1
            continue
        judged += 1
        found = inspector.inspect(pixels)
        state = decide(found, threshold)
        if state is not filed.state:
            picture = annotated(pixels, found, threshold, max_side=_SIDE)
            changed.append(
                Changed(
                    filed=filed,
                    new_score=found.score,
                    new_state=state,
                    picture=picture if pictures < SHOWN else None,
                )
            )
            pictures += 1
    return Comparison(
        with_what=f"{name} and its threshold {threshold:.4g}",
        judged=judged,
        unreadable=unreadable,
        changed=tuple(changed),
    )


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write one HTML file that needs no other; makes its folder."""
    html = render(
        "comparison.html.j2",
        title="ATAC Agent: what would change",
        comparison=comparison,
        sections=[
            ("NG parts that would be OK", comparison.to(State.OK)),
            ("OK parts that would be NG", comparison.to(State.NG)),
        ],
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, html)
    except OSError as error:
        raise ConfigurationError(
            "--report", str(path), f"cannot be written ({error.strerror}); name another file"
        ) from error


def _seen(path: Path) -> Pixels | None:
    try:
        return reduced(read_image(path), _SIDE)
    except ImageError:
        return None
