"""What browsers that show the line are told: made once for all of them, a few times a second.

    Now, Pictures ── versions ──▶ Board.run ── one message ──▶ any number of browsers

A message has what is new since the one before. A browser that is new, or was too slow for one,
gets all of it. While no browser shows the line, nothing is made.
"""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from jinja2 import Environment
from markupsafe import Markup

from agent.part import State
from agent.services.page.now import STRIP, Now, Seen
from agent.services.page.pictures import Pictures
from agent.services.page.texts import local_time, score

_TICK_S: Final = 0.1
_BEAT_S: Final = 2.0
"""Browsers are told that the line lives, and show that they do, at least so often."""
_ROWS: Final = ("newest", "rejected")


class Board:
    """The line's screen as it is now; `run` and `messages` belong to the server's loop.

    Args:
        now: What happens.
        pictures: Live pictures of it.
        templates: Show it.
        steady: Seconds.
    """

    def __init__(
        self,
        now: Now,
        pictures: Pictures,
        templates: Environment,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._pictures = pictures
        self._templates = templates
        self._steady = steady
        self._lock = threading.Lock()
        self._panel = Markup("")
        self._panel_of: tuple[int, float] = (-1, 0.0)
        self._tile = lru_cache(maxsize=256)(self._tile_made)
        self._number = 0
        self._told: Mapping[str, Mapping[str, str]] = {row: {} for row in _ROWS}
        self._shown = Markup("")
        self._frames: dict[str, int] = {}
        self._scores = 0
        self._delta, self._whole = "", ""
        self._wanted, self._made = asyncio.Event(), asyncio.Event()

    # ---- the screen, for whoever loads it

    def panel(self) -> Markup:
        """The numbers of the line, made again at most twice a second."""
        with self._lock:
            version, now = self._now.version, self._steady()
            made_of, made_at = self._panel_of
            if version != made_of and (made_of < 0 or now - made_at >= self._now.pace_s):
                self._panel_of = version, now
                template = self._templates.get_template("line_panel.html.j2")
                self._panel = Markup(template.render(self._figures()))  # noqa: S704 - a template
            return self._panel

    def rows(self) -> Mapping[str, Mapping[str, Markup]]:
        """The tiles of each row by the ids that they have on the screen, the newest first."""
        shown = {"newest": self._now.tiles(), "rejected": self._now.rejected()}
        return {
            row: {f"{row}-{seen.epoch}-{seen.sequence}": self._tile_of(row, seen) for seen in seen_}
            for row, seen_ in shown.items()
        }

    def _figures(self) -> Mapping[str, object]:
        now = self._now
        status = now.status or {"cameras": {}, "faults": [], "is_paused": False}
        ended = now.counts()
        triggers = sum(camera["triggers"] for camera in status["cameras"].values())
        began_ns, shift = now.shift()
        in_shift = sum(shift.values())
        last = now.newest(1)
        return {
            "last": last[0] if last else None,
            "counts": {state.value: ended[state.value] for state in State},
            "triggers": triggers,
            "in_work": triggers - ended.total(),
            "shift_began_ns": began_ns,
            "shift": shift,
            "in_shift": in_shift,
            "shift_yield": shift[State.OK.value] / in_shift if in_shift else None,
            "faults": status["faults"],
            "has_status": now.status is not None,
            "product": status.get("product"),
            "several": len(status["cameras"]) > 1,
        }

    def _tile_of(self, row: str, seen: Seen) -> Markup:
        is_live = self._pictures.is_live(seen.epoch, seen.sequence)
        return self._tile(row, seen, is_live or seen.has_thumbnail)

    def _tile_made(self, row: str, seen: Seen, has_picture: bool) -> Markup:  # noqa: FBT001 - cached
        module: Any = self._templates.get_template("parts.html.j2").module
        return Markup(str(module.tile(seen, row, has_picture)).strip())  # noqa: S704 - a template

    # ---- what browsers are told

    async def messages(self) -> AsyncIterator[str]:
        """What one browser is told, for as long as it listens."""
        number = -1
        while True:
            self._now.look()
            self._wanted.set()
            if number < 0 and self._number:
                number = self._number
                yield self._everything()
            await self._made.wait()
            number, missed = self._number, self._number - number != 1
            yield self._everything() if missed else self._delta

    async def run(self) -> None:
        """Make messages while browsers want them; never ends."""
        made, beat = None, 0.0
        while True:
            await self._wanted.wait()
            version, now = self._version(), self._steady()
            is_due = version != made or now >= beat
            if is_due:
                made, beat = version, now + _BEAT_S
                self._wanted.clear()
                self._make()
            await asyncio.sleep(self._now.pace_s if is_due else _TICK_S)

    def _version(self) -> tuple[int, int]:
        return self._now.version, self._pictures.version

    def _make(self) -> None:
        news = self._news(is_whole=False)
        html = self.panel()
        self._delta = ("" if html == self._shown else _html(html)) + _event(news)
        self._shown, self._whole = html, ""
        self._number += 1
        self._made.set()
        self._made = asyncio.Event()

    def _everything(self) -> str:
        if not self._whole:
            self._whole = _html(self._shown) + _event(self._news(is_whole=True))
        return self._whole

    def _news(self, *, is_whole: bool) -> dict[str, object]:
        frames = self._pictures.frames()
        after = 0 if is_whole else self._scores
        scored = self._now.newest(STRIP, after=after)[::-1]
        if is_whole:  # what is newer comes with the next message
            scored = [seen for seen in scored if seen.number <= self._scores]
        rows = self.rows()
        new = {
            row: [
                tile for id_, tile in tiles.items() if is_whole or self._told[row].get(id_) != tile
            ]
            for row, tiles in rows.items()
        }
        told: dict[str, object] = {
            "whole": is_whole,
            "age": self._now.since_last_s(),
            "scores": [[_short(seen.score), _short(seen.threshold), seen.state] for seen in scored],
            "frames": [
                self._caption(camera, number, said)
                for camera, (number, said) in frames.items()
                if is_whole or self._frames.get(camera) != number
            ],
            "rows": {row: "".join(tiles) for row, tiles in new.items()},
        }
        if not is_whole:
            self._told = rows
            self._frames = {camera: number for camera, (number, _) in frames.items()}
            self._scores = scored[-1].number if scored else self._scores
        return told

    def _caption(self, camera: str, number: int, said: Mapping[str, Any]) -> dict[str, object]:
        cameras = self._now.cameras()
        words = [said["part_id"] or str(said["sequence"]), local_time(said["decided_ns"])]
        if said["score"] is not None:
            words.append(f"{score(said['score'])} / {score(said['threshold'])}")
        return {
            "camera": cameras.index(camera) if camera in cameras else 0,
            "n": number,
            "picture": f"/picture/large/{said['epoch']}/{said['sequence']}.jpg",
            "state": said["state"],
            "text": " · ".join(words),
        }


def _short(value: float | None) -> float | None:
    """Four digits: no pixel shows more."""
    return None if value is None else float(f"{value:.4g}")


def _html(html: str) -> str:
    return "".join(f"data: {line}\n" for line in html.splitlines()) + "\n"


def _event(news: Mapping[str, object]) -> str:
    return f"event: news\ndata: {json.dumps(news, separators=(',', ':'))}\n\n"
