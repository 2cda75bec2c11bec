"""All words of the page, in one file for each language; and how times and numbers are written."""

import tomllib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).parent / "texts"


class Texts:
    """The words in one language: `say("line.yield")`; `folders` have more than ours."""

    def __init__(self, *folders: Path, language: str = "en") -> None:
        self.language: Final = language
        self._words: dict[str, str] = {}
        for folder in (_FOLDER, *folders):
            text = (folder / f"{language}.toml").read_text("utf-8")
            self._words |= _flat(tomllib.loads(text))

    def say(self, key: str, **values: object) -> str:
        """The text of this key, with `values` in their places."""
        text = self._words[key]
        return text.format(**values) if values else text

    def count(self, key: str, n: int) -> str:
        """The text for `n` things: that of `key.one` or `key.many`."""
        return self.say(f"{key}.{'one' if n == 1 else 'many'}", n=n)

    def remedy(self, fault: str) -> str:
        """What to do about a line of the agent's faults."""
        kind = fault.partition(":")[0].split(" ")[0]
        return self._words.get(f"remedies.{kind}", self._words["remedies.other"])


def _flat(tree: Mapping[str, object], above: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{above}{name}.")
        else:
            found[above + name] = str(value)
    return found


def local_time(time_ns: int) -> str:
    """A time of day where the agent is: `14:05:09`."""
    return f"{datetime.fromtimestamp(time_ns / 1e9).astimezone():%H:%M:%S}"


def local_day(time_ns: int) -> str:
    """A day where the agent is: `2026-11-22`."""
    return f"{datetime.fromtimestamp(time_ns / 1e9).astimezone():%Y-%m-%d}"


def percent(share: float | None, digits: int = 2) -> str:
    """A share as people write it; a dash where there is none."""
    if share is None:
        return "–"
    text = f"{100 * share:.{digits}f}"
    return f"{text} %" if share in {0.0, 1.0} or text not in {"0.00", "100.00"} else f"≈ {text} %"


def score(value: float | None) -> str:
    """A score with three digits."""
    return "–" if value is None else f"{value:.3g}"
