"""What the operator's page costs the line, and how fast it answers.

    python -m benchmarks.page --out benchmarks/results/page.json

One line inspects the demo's frames in its child process as fast as it can, records every part and
keeps evidence. In turns it is alone, and has the page beside it, with four viewers of the Line
screen and somebody who loads a screen every second, all on this machine: A, B, B, A and so on.
Viewers read events and load what a browser would, each picture once, as the page lets browsers
keep them; their processor time is `viewers_cpu`, and `agent_ms_a_part` the agent's own for a part
without and with them, in milliseconds. `ratio` is
parts a second with the page over without, `p99_ratio` that of the 99 % latency, `between` bounds of
95 % of 2 000 resamplings of the turns.

`review` is the time of an answer over a history of a million parts, in milliseconds: until it is
there, and of the page's processor. `first_view`
is the time until Chromium has loaded a screen, and `back` until a page answers that was killed or
frozen, in seconds, while the line runs at full rate.
"""

import argparse
import http.client
import logging
import math
import os
import queue
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.bench import FramesCamera
from agent.cameras.conveyor import ConveyorSettings
from agent.clock import SystemClock
from agent.demo import BUNDLE
from agent.inference.child import ChildInspector, Setup
from agent.part import Part, State
from agent.ports import Watched
from agent.record.ledger import Ledger
from agent.services.page.history import History
from agent.services.page.service import PageService
from agent.services.page.settings import PageSettings
from agent.settings import (
    AgentSettings,
    BundleSettings,
    Config,
    EvidenceSettings,
    LedgerSettings,
)
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.controls import Controls
from agent.station.station import Model, Station
from agent.station.threshold import Threshold
from agent.synthetic.flange import part
from benchmarks.machine import cpu_s, described, write_result
from calibration.record import read_calibration
from engine.bundle import open_bundle

VIEWERS = 4
_FRAMES = 40
_RESAMPLINGS = 2000
_SETTLE_S = 4.0
_APART_S = 11.0
"""One that ends again sooner is started again later."""
_PARTS = 1_000_000
_ANSWERS = 40

_VIEWER = """
import http.client, json, os, re, socket, sys
os.nice(19)
host, port = sys.argv[1], int(sys.argv[2])
loads = http.client.HTTPConnection(host, port)
def load(path):
    loads.request("GET", path); loads.getresponse().read()
load("/line")
seen = set()
events = socket.create_connection((host, port)); lines = events.makefile("rb")
events.sendall(f"GET /events HTTP/1.1\\r\\nHost: {host}:{port}\\r\\n\\r\\n".encode())
for line in lines:
    if line.startswith(b'data: {"whole"'):
        news = json.loads(line[6:])
        paths = [told["picture"] for told in news["frames"]]
        for path in paths + re.findall(r'src="([^"]+)"', "".join(news["rows"].values())):
            if path not in seen:
                seen.add(path); load(path)
"""
_RELOADER = """
import http.client, os, re, sys, time
os.nice(19)
loads = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]))
seen = set()
def load(path):
    loads.request("GET", path); return loads.getresponse().read()
while True:
    for screen in ("/line", "/review"):
        for path in re.findall(rb'<img src="([^"]+)"', load(screen))[:12]:
            if path not in seen:
                seen.add(path); load(path.decode())
        time.sleep(1.0)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What the line did in a time."""

    parts: int
    wall_s: float
    cpu_s: float
    """Of the agent, without the process that inspects."""
    latencies_s: list[float] = field(repr=False)
    not_inspected: int

    @property
    def rate(self) -> float:
        return self.parts / self.wall_s

    @property
    def p99_ms(self) -> float:
        return 1e3 * statistics.quantiles(self.latencies_s, n=100)[98]


@dataclass(slots=True, kw_only=True)
class RunningLine:
    """A line at full rate; every part that ended is in `ended`."""

    watched: Watched
    folder: Path
    ended: "queue.SimpleQueue[tuple[float, bool]]"

    def spend(self, seconds: float) -> Spent:
        """Let it run this long."""
        while not self.ended.empty():
            self.ended.get()
        start, cpu = time.perf_counter(), time.process_time()
        time.sleep(seconds)
        wall_s = time.perf_counter() - start
        found = [self.ended.get() for _ in range(self.ended.qsize())]
        return Spent(
            parts=len(found),
            wall_s=wall_s,
            cpu_s=time.process_time() - cpu,
            latencies_s=[latency for latency, _ in found],
            not_inspected=sum(not is_inspected for _, is_inspected in found),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=4, help="turns A, B or B, A")
    parser.add_argument("--seconds", type=float, default=20.0, help="the length of each A and B")
    parser.add_argument("--rate", type=float, help="parts a second; default: all that it can")
    parser.add_argument("--parts", type=int, default=_PARTS, help="of the history")
    parser.add_argument("--out", type=Path, help="write the result here")
    options = parser.parse_args()
    logging.disable(logging.WARNING)

    pairs: list[dict[bool, Spent]] = []
    page_cpu = viewers_cpu = 0.0
    with running_line(0.0 if options.rate is None else 1 / options.rate) as line:
        time.sleep(_SETTLE_S)
        for turn in range(options.turns):
            pair = {}
            for has_page in (False, True) if turn % 2 == 0 else (True, False):
                with watched_page(line) if has_page else nullcontext() as pids:
                    time.sleep(_SETTLE_S)
                    before = spent_by(pids)
                    pair[has_page] = line.spend(options.seconds)
                    after = spent_by(pids)
                page_cpu += after[0] - before[0]
                viewers_cpu += after[1] - before[1]
            pairs.append(pair)
        with page_beside(line) as page:
            first_view = first_views(page)
            back_s = {
                "killed": back_after(page, signal.SIGKILL),
                "frozen": back_after(page, signal.SIGSTOP),
            }
    seconds = options.turns * options.seconds
    result = {
        "machine": described(),
        "command": f"python -m benchmarks.page --turns {options.turns}",
        "seconds_each": options.seconds,
        "parts_per_second_without": round(rate(pairs, has_page=False), 2),
        "ratio": round(rate(pairs, has_page=True) / rate(pairs, has_page=False), 4),
        "between": between(
            pairs, lambda found: rate(found, has_page=True) / rate(found, has_page=False)
        ),
        "p99_ms_without": round(p99(pairs, has_page=False), 2),
        "p99_ratio": round(p99(pairs, has_page=True) / p99(pairs, has_page=False), 4),
        "p99_between": between(
            pairs, lambda found: p99(found, has_page=True) / p99(found, has_page=False)
        ),
        "not_inspected": [
            sum(pair[has_page].not_inspected for pair in pairs) for has_page in (False, True)
        ],
        "turns": [
            [[round(pair[has].rate, 2), round(pair[has].p99_ms, 2)] for has in (False, True)]
            for pair in pairs
        ],
        "rate": options.rate,
        "agent_ms_a_part": [
            round(
                1e3
                * sum(pair[has].cpu_s for pair in pairs)
                / sum(pair[has].parts for pair in pairs),
                3,
            )
            for has in (False, True)
        ],
        "page_cpu": round(page_cpu / seconds, 4),
        "viewers_cpu": round(viewers_cpu / seconds, 4),
        "first_view_s": first_view,
        "back_s": back_s,
        "review_ms": answers(options.parts),
    }
    write_result(result, options.out)


def rate(pairs: Sequence[dict[bool, Spent]], *, has_page: bool) -> float:
    """Parts a second over all turns."""
    spent = [pair[has_page] for pair in pairs]
    return sum(one.parts for one in spent) / sum(one.wall_s for one in spent)


def p99(pairs: Sequence[dict[bool, Spent]], *, has_page: bool) -> float:
    """The latency that 99 % of the parts of all turns had at most, in milliseconds."""
    together = [one for pair in pairs for one in pair[has_page].latencies_s]
    return 1e3 * statistics.quantiles(together, n=100)[98]


def between(pairs: Sequence[dict[bool, Spent]], figure: Any) -> list[float]:
    """Bounds of 95 % of resamplings of the turns."""
    found = sorted(figure(random.choices(pairs, k=len(pairs))) for _ in range(_RESAMPLINGS))
    return [round(found[int(share * (_RESAMPLINGS - 1))], 4) for share in (0.025, 0.975)]


def spent_by(pids: tuple[int, list[int]] | None) -> tuple[float, float]:
    """Processor time of the page and of who looks at it, in seconds."""
    if pids is None:
        return 0.0, 0.0
    return cpu_s(pids[0]), cpu_s(*pids[1])


@contextmanager
def running_line(interval_s: float = 0.0) -> Iterator[RunningLine]:
    """A line in this process, at full rate or slower, with its inspection in a child."""
    frames = [part(0, number, 0.1).pixels for number in range(_FRAMES)]
    camera = FramesCamera(frames, seconds=math.inf, interval_s=interval_s)
    stop, ended = threading.Event(), queue.SimpleQueue()
    bundle = open_bundle(BUNDLE)
    threshold = read_calibration(bundle).calibration.threshold
    watched: list[Watched] = []

    def note(ended_part: Part) -> None:
        taken_ns = ended_part.ended.decided_ns - ended_part.trigger.triggered_ns
        is_inspected = ended_part.ended.state in {State.OK, State.NG}
        ended.put((taken_ns / 1e9, is_inspected))

    def grab(monitor: Watched) -> Any:
        watched.append(monitor)
        return nullcontext()

    setup = Setup(bundle=BUNDLE, bundle_id=bundle.id)
    with (
        tempfile.TemporaryDirectory() as name,
        ChildInspector(setup) as inspector,
    ):
        folder = Path(name)
        config = Config(
            agent=AgentSettings(id="bench"),
            bundle=BundleSettings(path=folder),
            cameras=(ConveyorSettings(),),
            sinks=(MqttSettings(host="127.0.0.1", port=1),),
            ledger=LedgerSettings(path=folder / "ledger.sqlite"),
            evidence=EvidenceSettings(folder=folder / "evidence"),
        )
        with Ledger(config.ledger.path, agent_id="bench") as ledger:
            calibrated = Threshold(ledger, calibrated=threshold, calibration_id="")
            station = Station(
                config,
                cameras=[camera],
                inspector=inspector,
                model=Model(threshold=threshold).on(inspector),
                record=ledger,
                outlets=(),
                controls=Controls(threshold=calibrated),
                clock=SystemClock(),
                stop=stop,
                observers=(note,),
                services=(grab,),
            )
            thread = threading.Thread(target=station.run)
            thread.start()
            try:
                yield RunningLine(watched=watched[0], folder=folder, ended=ended)
            finally:
                stop.set()
                thread.join()


@contextmanager
def page_beside(line: RunningLine) -> Iterator[PageService]:
    """The page, once it answers."""
    settings = PageSettings(listen="127.0.0.1:0", folder=line.folder / "page")
    with PageService(settings, line.watched) as page:
        while page.address is None:
            time.sleep(0.01)
        while get(page.address, "/review/count") in {b"", b"0"}:
            time.sleep(0.1)
        yield page


@contextmanager
def watched_page(line: RunningLine) -> Iterator[tuple[int, list[int]]]:
    """The page with its viewers: their process ids."""
    with page_beside(line) as page, ExitStack() as stack:
        assert page.address is not None
        assert page.pid is not None
        processes = [
            subprocess.Popen([sys.executable, "-c", code, *map(str, page.address)])
            for code in (*[_VIEWER] * VIEWERS, _RELOADER)
        ]
        for process in processes:
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield page.pid, [process.pid for process in processes]


def first_views(page: PageService) -> dict[str, float] | None:
    """Seconds until Chromium has loaded each screen, the median of five; `None` without it."""
    driver, browser = shutil.which("chromedriver"), shutil.which("chromium")
    if not (driver and browser):
        return None
    from selenium import webdriver  # noqa: PLC0415 - where there is a browser
    from selenium.webdriver.chrome.service import Service  # noqa: PLC0415

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    shown = webdriver.Chrome(options=options, service=Service(driver))
    script = "return performance.getEntriesByType('navigation')[0].loadEventEnd"
    found: dict[str, float] = {}
    assert page.address is not None
    try:
        for screen in ("/line", "/review"):
            times = []
            for _ in range(5):
                shown.get("http://{}:{}{}".format(*page.address, screen))
                times.append(shown.execute_script(script) / 1e3)
            found[screen] = round(statistics.median(times), 3)
            found[f"{screen} first"] = round(times[0], 3)
    finally:
        shown.quit()
    return found


def back_after(page: PageService, what: signal.Signals) -> float:
    """Seconds until a page answers that is killed or frozen, the median of three."""
    times = []
    assert page.address is not None
    for _ in range(3):
        assert page.pid is not None
        pid, start = page.pid, time.perf_counter()
        os.kill(pid, what)
        while page.pid == pid or not get(page.address, "/line"):
            time.sleep(0.02)
        times.append(time.perf_counter() - start)
        time.sleep(_APART_S)
    return round(statistics.median(times), 2)


# ---- answers over a long history


def answers(parts: int) -> dict[str, list[float]]:
    """Milliseconds until the review answers, the median, and of the processor, the mean."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        history = History(folder / "page" / "history.sqlite", near=0.1)
        fill(history, parts)
        history.close()
        with running_idle(folder) as page:
            assert page.address is not None
            found = {}
            for title, path in {
                "NG, not labelled": "/review?queue=ng&label=open",
                "audit": "/review?queue=audit&label=open",
                "everything": "/review?queue=&label=",
                "a rare state of a camera": "/review?queue=&label=&camera=side&state=TIMEOUT",
                "a part id": f"/review?part_id=part-{parts // 2}",
                "a range of scores": "/review?queue=&label=&score_from=0.9&score_to=0.95",
                "an hour": "/review?queue=&label=&from=2026-11-20T12:00&to=2026-11-20T13:00",
                "the line": "/line",
            }.items():
                times, cpu = [], cpu_s(page.pid)
                for _ in range(_ANSWERS):
                    start = time.perf_counter()
                    get(page.address, path)
                    times.append(time.perf_counter() - start)
                found[title] = [
                    round(1e3 * statistics.median(times), 1),
                    round(1e3 * (cpu_s(page.pid) - cpu) / _ANSWERS, 1),
                ]
    return found


def fill(history: History, parts: int) -> None:
    """Put parts of twelve days into it, by the file's own language."""
    file = history._writer  # noqa: SLF001 - a million parts in seconds
    file.execute(
        """
        INSERT INTO parts (epoch, sequence, run, camera, part_id, triggered_ns, decided_ns, state,
            late_state, reason, score, threshold, box, audit, has_thumbnail, queues, label)
        WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
        SELECT 'eeeeeeeeeeee', n, 1, CASE n % 3 WHEN 0 THEN 'side' ELSE 'top' END, 'part-' || n,
            1794700800000000000 + n * 1000000000, 1794700800050000000 + n * 1000000000,
            CASE WHEN n % 50 = 0 THEN 'NG' WHEN n % 9000 = 3 THEN 'TIMEOUT' ELSE 'OK' END,
            NULL, '', (n * 7919 % 10007) / 10007.0, 0.5, NULL,
            CASE WHEN n % 500 = 7 THEN 0.002 END, 0,
            (n % 50 = 0) + 2 * (n % 40 = 1) + 4 * (n % 500 = 7),
            CASE WHEN n % 150 = 0 THEN 'good' END
        FROM numbers
        """,
        (parts,),
    )


@contextmanager
def running_idle(folder: Path) -> Iterator[PageService]:
    """A page in `folder` whose line has no parts."""
    stop = threading.Event()
    config = Config(
        agent=AgentSettings(id="bench"),
        bundle=BundleSettings(path=folder),
        cameras=(ConveyorSettings(),),
        sinks=(MqttSettings(host="127.0.0.1", port=1),),
        ledger=LedgerSettings(path=folder / "ledger.sqlite"),
        evidence=EvidenceSettings(folder=folder / "evidence"),
    )
    settings = PageSettings(listen="127.0.0.1:0", folder=folder / "page")
    pages: list[PageService] = []

    class Waiting(FramesCamera):
        def read(self) -> None:
            stop.wait()

    def made(watched: Watched) -> PageService:
        pages.append(PageService(settings, watched))
        return pages[0]

    with Ledger(config.ledger.path, agent_id="bench") as ledger:
        station = Station(
            config,
            cameras=[Waiting([], seconds=math.inf, interval_s=0.0)],
            inspector=None,  # no part comes
            model=Model(threshold=1.0),
            record=ledger,
            outlets=(),
            controls=Controls(threshold=Threshold(ledger, calibrated=1.0, calibration_id="")),
            clock=SystemClock(),
            stop=stop,
            services=(made,),
        )
        thread = threading.Thread(target=station.run)
        thread.start()
        try:
            while not pages or pages[0].address is None:
                time.sleep(0.01)
            get(pages[0].address, "/review/count")
            yield pages[0]
        finally:
            stop.set()
            thread.join()


def get(address: tuple[str, int], path: str) -> bytes:
    """What the page answers; nothing where it does not."""
    connection = http.client.HTTPConnection(*address, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    except OSError:
        return b""
    finally:
        connection.close()


if __name__ == "__main__":
    main()
