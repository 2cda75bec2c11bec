"""Runs the page of a fleet: it listens to the brokers of the sites, reads the bucket, and serves.

    fleet-broker-N ── state, fleet, health ──▶ Lines      fleet-bucket ── new objects ──▶ Sums
    fleet-page ─ asyncio ──▶ browsers

A broker or a bucket that is away is said on the page and tried again; what was heard stays.
"""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from starlette.requests import Request

from agent.clock import SystemClock
from agent.fleet.page.lines import Condition, Line, Lines
from agent.fleet.page.sums import Day, Sums
from agent.fleet.plan import FleetPlan, SiteBroker
from agent.fleet.reports import pattern_of
from agent.mqtt.link import Heard, Link, address
from agent.ports import Clock
from agent.services.page.access import USERS, Access, Role
from agent.services.page.screens import Action, Form, Fragment, Screen
from agent.services.page.server import Server
from agent.services.page.service import listen
from agent.services.page.site import Site, application, templates
from agent.services.page.texts import Texts
from engine.errors import AtacError, BrokerError

_LOG: Final = logging.getLogger("atac_agent.fleet")
_FOLDER: Final = Path(__file__).parent
_RETRY_S: Final = 5.0
_LOOK_S: Final = 0.5
_BUCKET_S: Final = 300.0
_SHOWN: Final = 100
"""Rows of one table; a search finds the others."""
_WHAT: Final = ("state", "fleet", "health")


class FleetPage:
    """What the page shows, and the threads that gather it; a context manager.

    Args:
        plan: The fleet.
        clock: Of all waits and ages.
    """

    def __init__(self, plan: FleetPlan, clock: Clock | None = None) -> None:
        self._plan = plan
        self._clock = clock or SystemClock()
        self._leaving = threading.Event()
        self._faults: dict[str, str] = {}
        self._days: Mapping[str, Day] = {}
        self.lines: Final = Lines(plan.lines, self._clock)
        work = [
            threading.Thread(target=self._follow, args=(broker,), name=f"fleet-broker-{number}")
            for number, broker in enumerate(plan.brokers)
        ]
        if plan.bucket is not None:
            work.append(threading.Thread(target=self._read, name="fleet-bucket"))
        self._threads = work

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        for thread in self._threads:
            thread.join()

    def shown(self, asked: Mapping[str, str]) -> dict[str, object]:
        """What the screen's template wants; `asked` has `search` and `condition`."""
        lines, search = self.lines.all(), asked.get("search", "").strip().lower()
        days = self._days
        missing = {agent for agent, day in days.items() if day.missing}
        chosen = [line for line in lines if _is_found(line, search, asked.get("condition", ""))]
        counts = dict.fromkeys(Condition, 0)
        for line in lines:
            counts[line.condition] += 1
        sites: dict[str, list[Line]] = {}
        for line in sorted(lines, key=lambda one: (one.site, one.agent)):
            sites.setdefault(line.site, []).append(line)
        rates = [line.parts_per_minute for line in lines if line.parts_per_minute is not None]
        return {
            "lines": chosen[:_SHOWN],
            "more": max(0, len(chosen) - _SHOWN),
            "sites": sites,
            "counts": counts,
            "all": len(lines),
            "rate": sum(rates),
            "bundles": _bundles(lines),
            "days": days,
            "missing": missing,
            "search": asked.get("search", ""),
            "condition": asked.get("condition", ""),
            "faults": [f"{name}: {fault}" for name, fault in sorted(self._faults.items())],
            "has_bucket": self._plan.bucket is not None,
        }

    # ---- threads

    def _follow(self, broker: SiteBroker) -> None:
        place, pattern = address(broker), pattern_of(broker.topics)
        site = broker.site or broker.host

        def hear(heard: Heard) -> None:
            if (found := pattern.fullmatch(heard.topic)) is not None and found["what"] in _WHAT:
                self.lines.hear(site, found["agent"], found["what"], heard.payload)

        number = self._threads.index(threading.current_thread())
        while not self._leaving.is_set():
            try:
                with Link(broker, f"atac-fleet-page-{number}", hear=hear) as link:
                    for what in _WHAT:
                        link.subscribe(broker.topics.format(agent="+", what=what))
                    self._said(place, None)
                    while (lost := link.lost()) is None:
                        if self._clock.wait(self._leaving, _LOOK_S):
                            return
                    raise lost
            except BrokerError as error:
                self._said(place, str(error).removeprefix(f"{place}: "))
            self._clock.wait(self._leaving, _RETRY_S)

    def _read(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - an extra

        from agent.services.shipper.store import S3Address, refusal, unreached  # noqa: PLC0415

        assert self._plan.bucket is not None
        bucket, sums = self._plan.bucket, None
        with ExitStack() as stack:
            while not self._leaving.is_set():
                try:
                    if sums is None:
                        target = S3Address.of(bucket, "bucket")
                        path = self._plan.page.folder / "sums.sqlite"
                        sums = Sums(path, target.client(), bucket.bucket)
                        stack.callback(sums.close)
                    now = datetime.fromtimestamp(self._clock.utc_ns() / 1e9, UTC)
                    sums.take(now, is_over=self._leaving.is_set)
                    self._days = sums.days(now)
                    self._said(f"bucket {bucket.bucket}", None)
                except ClientError as error:
                    self._said(f"bucket {bucket.bucket}", refusal(error))
                except (BotoCoreError, OSError, AtacError) as error:
                    self._said(f"bucket {bucket.bucket}", unreached(error))
                self._clock.wait(self._leaving, _BUCKET_S)

    def _said(self, name: str, fault: str | None) -> None:
        if fault is None:
            if self._faults.pop(name, None) is not None:
                _LOG.warning("%s answers again", name)
        elif self._faults.get(name) != fault:
            self._faults[name] = fault
            _LOG.error("%s: %s", name, fault)


def _is_found(line: Line, search: str, condition: str) -> bool:
    if condition and line.condition.name.lower() != condition:
        return False
    products = [text or "" for one in line.products for text in (one.place, one.bundle, one.state)]
    known = (line.bundle or "", line.state or "", *line.reasons, *products)
    texts = (line.agent, line.site, *known)
    return not search or any(search in text.lower() for text in texts)


def _bundles(lines: list[Line]) -> list[tuple[str, int]]:
    """Which bundles are in force on how many lines, the most first."""
    found: dict[str, int] = {}
    for line in lines:
        for bundle in {line.bundle, *(one.bundle for one in line.products)}:
            if bundle is not None:
                found[bundle] = found.get(bundle, 0) + 1
    return sorted(found.items(), key=lambda each: -each[1])


def screen_of(page: FleetPage) -> Screen:
    """The one screen; its piece is loaded again while somebody looks."""

    def show(_site: object, request: Request) -> dict[str, object]:
        return page.shown(request.query_params)

    def piece(_site: object, _request: Request, form: Form) -> Fragment:
        return Fragment(template="fleet_panel.html.j2", values=page.shown(form))

    return Screen(
        name="fleet",
        role=Role.VIEWER,
        order=10,
        show=show,
        fragments={"panel": Action(role=Role.VIEWER, do=piece)},
    )


@contextmanager
def served(plan: FleetPlan, clock: Clock | None = None) -> Iterator[str]:
    """The page while it is served; gives its address.

    Raises `OSError` where it cannot listen.
    """
    settings = plan.page
    with ExitStack() as stack:
        listening = stack.enter_context(listen(*settings.address))
        settings.folder.mkdir(parents=True, exist_ok=True)
        access = stack.enter_context(
            Access(settings.folder / USERS, idle_s=settings.idle_minutes * 60)
        )
        page = stack.enter_context(FleetPage(plan, clock))
        texts = Texts(_FOLDER / "texts")
        screens = (screen_of(page),)
        made = templates(texts, screens, _FOLDER / "templates")
        site = Site(access=access, texts=texts, templates=made, screens=screens)
        app: Any = application(site, quiet=("/fleet/panel",))
        server = Server(app, settings.certificate_file, settings.key_file)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listening]}, name="fleet-page", daemon=True
        )
        thread.start()
        try:
            host, port = listening.getsockname()[:2]
            scheme = "http" if settings.certificate_file is None else "https"
            yield f"{scheme}://{host}:{port}"
        finally:
            server.should_exit = True
            thread.join(5.0)
