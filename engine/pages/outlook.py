"""What a person wants to know first, as the pages of training and calibration show it."""

from dataclasses import dataclass

from engine.frame import Pixels


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Suspect:
    """A good part that sets the threshold, or lies above it; `picture` where there is one."""

    name: str
    score: float
    remark: str
    picture: Pixels | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceRow:
    """One limit on false rejects in words; `is_asked` is the one that the threshold keeps."""

    promise: str
    threshold: str
    found: str
    is_asked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeRow:
    """One type of defect: `found` of `of` score above the threshold."""

    kind: str
    found: int
    of: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outlook:
    """How many defects will be found and how many good parts rejected, and what would change it.

    `look_first` names good parts that cost detection; empty where none do. `headline` is the
    outlook in one sentence, `basis` what it rests on. `steps` are what to do next, each with what
    it is worth. `types` are there where there are several.
    """

    look_first: str
    headline: str
    basis: str
    suspects: tuple[Suspect, ...]
    prices: tuple[PriceRow, ...]
    steps: tuple[str, ...]
    types: tuple[TypeRow, ...]
    good_scores: tuple[float, ...]
    defective_scores: tuple[float, ...]
    threshold: float
