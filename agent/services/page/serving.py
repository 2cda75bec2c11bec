"""The threads of the page's process.

    page-follow ─ the feed ──▶ history      main ─ asyncio ──▶ browsers
    page-pulse ── status, live frames       page-labels ─ labels of whatever transport

Any of them that ends, ends the process, and the agent starts another.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Final

import cv2

from agent.child import AgentEnd
from agent.record.feed import follow
from agent.services.page.app import application
from agent.services.page.opening import opened_page
from agent.services.page.page import Page
from agent.services.page.server import Server

_LOG: Final = logging.getLogger("atac_agent.page")
_TLS: Final = ("certificate_file", "key_file")
_NICER: Final = 5
_TICK_S: Final = 0.2
_STATUS_S: Final = 0.5
_FLUSH_S: Final = 1.0
_LABELS_S: Final = 2.0
_LOOKS: Final = 10


def serve(argument: str) -> None:
    """Serve until the agent goes."""
    logging.basicConfig(format="agent: page: %(message)s", level=logging.WARNING)
    cv2.setNumThreads(1)
    agent, listening = AgentEnd.taken(argument)
    page = opened_page(agent)
    server = Server(application(page), *(agent.setup[name] for name in _TLS))
    os.nice(_NICER)
    for name, work in {"follow": _follow, "pulse": _pulse, "labels": _labels}.items():
        threading.Thread(target=_ended_with, args=(work, page), name=f"page-{name}").start()
    server.run(sockets=listening)
    os._exit(1)


def _ended_with(work: Callable[[Page], None], page: Page) -> None:
    try:
        work(page)
    except ConnectionError:
        os._exit(0)  # the agent has gone
    except Exception:  # noqa: BLE001 - the process ends, and another is started
        _LOG.exception("a thread of the page has ended")
    os._exit(1)


def _follow(page: Page) -> None:
    for event in follow(page.agent.feed, page.history.cursor()):
        page.history.add(event)
        page.now.add(event)


def _pulse(page: Page) -> None:
    asked = looked = flushed = -math.inf
    while True:
        now = time.monotonic()
        if now - asked >= _STATUS_S:
            asked = now
            known = None if page.now.status is None else page.now.status["time_ns"]
            status, _ = page.agent.pulse("status", known=known)
            if isinstance(status, dict):
                page.now.told(status)
        if page.now.is_watched and now - looked >= page.now.pace_s:
            looked = now
            for key in page.pictures.look(page.now.cameras()):
                page.now.pictured(*key)
        if now - flushed >= _FLUSH_S:
            flushed = now
            page.history.flush()
        time.sleep(_TICK_S)


def _labels(page: Page) -> None:
    while True:
        page.labels.take()
        page.looks.fill(_LOOKS)
        time.sleep(_LABELS_S)
