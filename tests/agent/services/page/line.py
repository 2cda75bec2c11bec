"""A line that runs in this process, with its page in another, for tests that look at it."""

import http.client
import json
import queue
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

from agent.cameras.conveyor import ConveyorSettings
from agent.inference.child import ChildInspector, Setup
from agent.services.page.access import COOKIE, USERS, Access, Role
from agent.services.page.service import PageService
from agent.services.page.settings import PageSettings
from agent.settings import (
    AgentSettings,
    BundleSettings,
    CheckSettings,
    Config,
    EvidenceSettings,
    LedgerSettings,
    ProductSettings,
)
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.run import run_station
from agent.station.station import Model
from agent.synthetic.flange import part
from calibration.record import read_calibration
from engine.bundle import MANIFEST, open_bundle
from engine.frame import Frame
from engine.scripted_inspector import BrightnessInspector

PASSWORD = "a long password"
THRESHOLD = 0.5


class ShownParts:
    """A camera that gives what a test shows it."""

    triggered, silence_s, is_live, fault = True, None, False, None

    def __init__(self, stop):
        self._stop, self._shown, self._ids, self._number = stop, queue.Queue(), {}, 0

    def show(self, score, part_id=None):
        """A part with this score, or these pixels."""
        if isinstance(score, np.ndarray):
            pixels = score
        else:
            pixels = part(7, self._number, 0.0).pixels[::2, ::2].copy()
            pixels[0, 0] = round(100 * score)
        self._ids[self._number] = part_id
        frame = Frame(pixels=pixels, number=self._number, captured_ns=time.time_ns())
        self._number += 1
        self._shown.put(frame)

    def __enter__(self):
        return self

    def __exit__(self, *_): ...

    def read(self):
        while not self._stop.is_set():
            try:
                return self._shown.get(timeout=0.05)
            except queue.Empty:
                continue
        return None

    def renewed(self):
        return self

    def part_id(self, number):
        return self._ids.get(number)

    def source(self, number):
        del number


class Line:
    """The line and its page; a context manager. `url` is the page's address."""

    def __init__(
        self,
        folder: Path,
        *,
        names=("main",),
        products=(),
        users=True,
        settings=None,
        bundle=None,
        trusted=None,
        **evidence,
    ):
        """With a calibrated `bundle` this inspects, and others may be promoted.

        So does that of each of the `products`, where its folder has one. `parts` have ended.
        `trusted` is how a page that is encrypted is spoken to.
        """
        self.folder, self.bundle, self.config_file = folder, bundle, None
        self.products, self.parts = products, []
        self.stop = threading.Event()
        self.cameras = {name: ShownParts(self.stop) for name in names}
        self.settings = replace(PageSettings(listen="127.0.0.1:0"), **(settings or {}))
        self.host, self._trusted = "", trusted
        self._cookies: dict[Role, str] = {}
        if users:
            (folder / "page").mkdir()
            (folder / "page" / USERS).write_bytes(users_of_all_roles())
        self.config = Config(
            agent=AgentSettings(id="line-3"),
            bundle=BundleSettings(path=bundle or folder),
            cameras=tuple(ConveyorSettings(name=name) for name in names),
            sinks=(MqttSettings(host="127.0.0.1", port=1, drain_s=0),),
            ledger=LedgerSettings(path=folder / "ledger.sqlite"),
            evidence=EvidenceSettings(folder=folder / "evidence", **evidence),
            check=CheckSettings(folder=folder / "checks"),
            products=tuple(
                ProductSettings(name=name, bundle=BundleSettings(path=folder / name))
                for name in products
            ),
            services=(self.settings,),
        )
        self.page: PageService
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        inspector, model = BrightnessInspector(), Model(threshold=THRESHOLD)
        with ExitStack() as stack:
            if self.bundle is not None:
                inspector, model = inspecting(self.bundle, stack)
            products = {
                name: inspecting(self.folder / name, stack)
                if (self.folder / name / MANIFEST).is_file()
                else (inspector, model)
                for name in self.products
            }
            run_station(
                self.config,
                cameras=list(self.cameras.values()),
                inspector=inspector,
                model=model,
                products=lambda: products,
                stop=self.stop,
                observers=(self.parts.append,),
                may_promote=True,
                config_file=self.config_file,
            )

    def __enter__(self):
        made = []
        with ExitStack() as stack:
            original = PageService.__init__

            def noted(page, *arguments):
                original(page, *arguments)
                made.append(page)

            PageService.__init__ = noted
            stack.callback(setattr, PageService, "__init__", original)
            self._thread.start()
            until(lambda: made and made[0].address)
        self.page = made[0]
        self.host = "{}:{}".format(*self.page.address)
        return self

    def __exit__(self, *_):
        self.stop.set()
        self._thread.join()

    @property
    def url(self):
        return f"http://{self.host}"

    @property
    def browser_url(self):
        return self.url

    def show(self, *scores, camera="main", ids=()):
        """Have parts with these scores inspected, and wait until the page has them."""
        before = self.shown()
        for score, name in zip(scores, [*ids, *[None] * len(scores)], strict=False):
            self.cameras[camera].show(score, name)
        until(lambda: self.shown() >= before + len(scores))

    def shown(self):
        """How many parts the page knows."""
        page = self.get("/review/count")
        return int(page.text) if page.status == 200 else -1

    def ask(self, method, path, *, body=None, headers=None, cookie=None):
        connection = self._connection()
        try:
            given = dict(headers or {})
            if cookie:
                given["Cookie"] = f"{COOKIE}={cookie}"
            connection.request(method, path, body=body, headers=given)
            answer = connection.getresponse()
            return Answered(answer, answer.read())
        finally:
            connection.close()

    def _connection(self):
        if self._trusted is None:
            return http.client.HTTPConnection(self.host, timeout=180)
        host = f"localhost:{self.page.address[1]}"
        return http.client.HTTPSConnection(host, timeout=180, context=self._trusted)

    def get(self, path, **named):
        return self.ask("GET", path, **named)

    def post(self, path, form=(), *, cookie=None, headers=None):
        """As a page of ours posts."""
        given = {"Origin": self.url, "HX-Request": "true"} | (headers or {})
        return self.ask("POST", path, body=urlencode(form), headers=given, cookie=cookie)

    def log_in(self, role: Role) -> str:
        """The cookie of a session of this role."""
        if role not in self._cookies:
            form = {"name": role.name.lower(), "password": PASSWORD}
            answer = self.post("/login", form)
            assert answer.status == 200, answer.text
            value = answer.headers["set-cookie"].partition(";")[0].partition("=")[2]
            self._cookies[role] = value
        return self._cookies[role]

    def records(self):
        """The lines of the data set."""
        path = self.folder / "page" / "labelled" / "labels.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def inspecting(folder, stack):
    """What inspects with a calibrated bundle."""
    opened = open_bundle(folder)
    setup = Setup(bundle=opened.path, bundle_id=opened.id)
    inspector = stack.enter_context(ChildInspector(setup))
    return inspector, Model.of(read_calibration(opened)).on(inspector)


@cache
def users_of_all_roles():
    """The file of users; hashing a password takes long, and so it is meant to."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / USERS
        with Access(path, idle_s=60) as access:
            for role in Role:
                access.add_user(role.name.lower(), PASSWORD, role)
        return path.read_bytes()


class Answered:
    def __init__(self, answer, body):
        self.status, self.body = answer.status, body
        self.headers = {name.lower(): value for name, value in answer.getheaders()}

    @property
    def text(self):
        return self.body.decode(errors="replace")


def until(condition, timeout_s=900.0):
    """Ask with growing pauses: the page and its jobs are nicer than who asks."""
    began = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - began
        assert waited_s < timeout_s, "it did not happen in time"
        time.sleep(min(0.5, 0.02 + waited_s / 10))
