"""What browsers are told: all of it first, then what is new; the same for all of them."""

import asyncio
import json

import pytest

from agent.part import State
from agent.services.page.board import Board
from agent.services.page.history import History
from agent.services.page.now import Now
from agent.services.page.screens import screens
from agent.services.page.site import templates
from agent.services.page.texts import Texts
from tests.agent.events import event


class NoPictures:
    version = 0

    def is_live(self, _epoch, _sequence):
        return False

    def frames(self):
        return {}


@pytest.fixture
def now(tmp_path):
    history = History(tmp_path / "history.sqlite", near=0.1)
    yield Now(history, ("00:00",))
    history.close()


def news(message):
    (line,) = [line for line in message.splitlines() if line.startswith('data: {"whole"')]
    return json.loads(line.removeprefix("data: "))


def test_a_browser_gets_all_and_then_what_is_new(now):
    async def told():
        board = Board(now, NoPictures(), templates(Texts(), screens()))
        running = asyncio.create_task(board.run())
        now.add(event(sequence=1, state=State.OK, score=0.123456))
        first, second = board.messages(), board.messages()
        found = [await anext(first)]
        now.add(event(sequence=2, state=State.NG))
        found.append(await anext(first))
        found.append(await anext(second))
        running.cancel()
        return found

    first, delta, late = map(news, asyncio.run(told()))
    assert (first["whole"], delta["whole"], late["whole"]) == (True, False, True)
    assert [score for score, *_ in first["scores"]] == [0.1235]
    assert [state for *_, state in delta["scores"]] == ["NG"]
    assert [state for *_, state in late["scores"]] == ["OK", "NG"]
    assert delta["rows"]["newest"].count("<figure") == 1
    assert delta["rows"]["rejected"].count("<figure") == 1
    assert late["rows"]["newest"].count("<figure") == 2
    assert first["rows"]["rejected"] == ""
