"""Numbers and names as people write them."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Final

_NAMED: Final = 5
"""How many names a sentence has room for; all are counted."""


def percent(rate: float, *, digits: int = 6) -> str:
    """`rate` as people write it: 0.01 is `1 %`; measured rates deserve fewer digits."""
    return f"{100 * rate:.{digits}g} %"


def counted(count: int, noun: str) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(names: Sequence[str]) -> str:
    """The first names; the others are counted."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def short(path: str) -> str:
    """A file as a caption has room for it: its folder and its name."""
    return "/".join(PurePath(path).parts[-2:])
