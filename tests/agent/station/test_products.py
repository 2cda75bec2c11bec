"""Several products on one line: a part meets the bundle and the threshold of its own, or none."""

import itertools
import sqlite3
import threading
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from agent.cameras.conveyor import ConveyorCamera, ConveyorSettings
from agent.cameras.folder import FolderSettings
from agent.cameras.scripted import ScriptedCamera, scripted_frame
from agent.clock import ManualClock
from agent.ports import Announcement, CameraContext
from agent.record.ledger import Ledger
from agent.requests import RequestError, Requests
from agent.settings import (
    AgentSettings,
    BundleSettings,
    Config,
    LedgerSettings,
    ProductSettings,
    load_config,
)
from agent.sinks.mqtt.requests import ask
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.run import run_station
from agent.station.station import Model
from agent.triggers.mqtt import MqttTriggerSettings
from agent.triggers.scripted import ScriptedTriggers
from engine.errors import ConfigurationError, TriggerError
from engine.scripted_inspector import BrightnessInspector

NAMES = ("cola", "lemon", "water")


class Scoring(BrightnessInspector):
    """Scores tell which product's inspector has made them, and are NG above 10 × `number` + 0.5."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def inspect(self, pixels):
        found = super().inspect(pixels)
        return replace(found, score=found.score + 10 * self.number)


def ready():
    return {
        name: (
            Scoring(number),
            Model(
                threshold=10 * number + 0.5,
                bundle_id=f"bundle of {name}",
                calibration_id=f"calibration of {name}",
                workers=3,
            ),
        )
        for number, name in enumerate(NAMES)
    }


def configured(folder, **camera):
    return Config(
        agent=AgentSettings(id="line-3"),
        bundle=BundleSettings(path=folder),
        cameras=(FolderSettings(path=folder, **camera),),
        sinks=(MqttSettings(host="127.0.0.1", port=1, drain_s=0),),
        ledger=LedgerSettings(path=folder / "ledger.sqlite"),
        products=tuple(
            ProductSettings(name=name, bundle=BundleSettings(path=folder)) for name in NAMES
        ),
    )


def ran(config, *frames, camera=None, **options):
    products = ready()
    inspector, model = products[NAMES[0]]
    return run_station(
        config,
        cameras=[camera or ScriptedCamera(*frames)],
        inspector=inspector,
        model=model,
        products=lambda: products,
        **options,
    )


class SetUpCamera(ScriptedCamera):
    """Takes the features of all products but some; `had` are those it was told, `""` for none.

    So many frames that it gives afterwards were taken `before`.
    """

    def __init__(self, *script, refuses=(), before=0):
        super().__init__(*script)
        self.refuses, self.before = refuses, before
        self.had, self.underway = [], []

    def adjust(self, product):
        answer = Future()
        answer.set_result("does not take Gain" if product in self.refuses else None)
        if product not in self.had[-1:]:
            self.underway = self.had[-1:] * self.before
            self.had.append("" if product in self.refuses else product)
        return answer

    def read(self):
        frame = super().read()
        product = self.underway.pop() if frame and self.underway else self.had[-1]
        return frame and replace(frame, product=product)


def ends(config):
    """Every part as the ledger has it, with what has decided it."""
    connection = sqlite3.connect(config.ledger.path)
    connection.row_factory = sqlite3.Row
    try:
        return connection.execute(
            "SELECT * FROM triggers JOIN runs USING (epoch, run) ORDER BY sequence"
        ).fetchall()
    finally:
        connection.close()


def assert_own(row):
    """What has decided a part is its product's, in every respect."""
    number = NAMES.index(row["product"])
    assert int(row["score"] // 10) == number
    assert row["threshold"] == 10 * number + 0.5
    assert row["bundle_id"] == f"bundle of {row['product']}"
    assert row["calibration_id"] == f"calibration of {row['product']}"


@pytest.fixture
def asked(monkeypatch):
    """The requests of the line that runs."""
    made = []

    class Kept(Requests):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr("agent.station.run.Requests", Kept)
    return made


def switching(asked, product):
    return lambda: asked[-1].switch(product, by="Ada", why="a test", nonce="")


@pytest.mark.parametrize("seed", range(3))
def test_no_part_meets_another_product_whoever_switches_when(tmp_path, asked, seed):
    rng = np.random.default_rng(seed)
    script, expected = [], []
    now = NAMES[0]
    for number in range(60):
        if rng.random() < 0.4:
            now = str(rng.choice(NAMES))
            script.append(switching(asked, now))
        script.append(number % 90)
        expected.append(now)
    config = configured(tmp_path)
    summary = ran(config, *script)
    found = ends(config)
    assert [row["product"] for row in found] == expected
    inspected = [row for row in found if row["state"] in {"OK", "NG"}]
    assert len(inspected) == summary.inspected > 0
    for row in inspected:
        assert_own(row)
    states = {(row["state"], row["score"] > row["threshold"]) for row in inspected}
    assert states <= {("OK", False), ("NG", True)}


def test_an_announcement_says_what_its_part_is(tmp_path, asked):
    clock, stop = ManualClock(), threading.Event()
    told = [("cola", 10), ("water", 20), ("lemon", 70), ("beer", 30), (None, 40), ("cola", 60)]
    frames, triggers = [], []
    for number, (product, brightness) in enumerate(told):
        frame = replace(scripted_frame(brightness), number=number)
        seen, announced = threading.Event(), threading.Event()
        triggers += [Announcement(at=clock.now(), product=product), announced.set]
        triggers.append(lambda seen=seen: seen.wait(60))
        frames += [lambda announced=announced: announced.wait(60), frame, seen.set]
    # Whatever the line makes by request, an announced part is what was announced, or nothing.
    frames.insert(3, switching(asked, "lemon"))
    trigger = MqttTriggerSettings(
        host="127.0.0.1", topic="parts", payload="json", product_key="product", max_ms=50
    )
    config = configured(tmp_path, trigger=trigger)
    ran(config, *frames, triggers={"main": ScriptedTriggers(*triggers)}, clock=clock, stop=stop)
    found = ends(config)
    assert [row["product"] for row in found] == [product for product, _ in told]
    assert [row["state"] for row in found] == ["OK", "OK", "NG", "ERROR", "ERROR", "NG"]
    for row in found:
        if row["state"] == "ERROR":
            assert row["score"] is row["threshold"] is None
        else:
            assert_own(row)
    assert found[3]["reason"] == "its product 'beer' is none of the products in the configuration"
    assert found[4]["reason"] == "nobody has said what product this part is"


def test_a_plc_says_what_the_line_makes_and_its_silence_is_no_product(tmp_path, asked):
    """What it says holds from then on; while it is away nobody knows what it would say."""
    told, frames, source, count = [], [], [], itertools.count()

    def step(brightness, *said):
        """Have the PLC say something, then show a part."""
        heard, shown = threading.Event(), threading.Event()
        source.extend([*said, lambda: (heard.set(), shown.wait(60))])
        frame = replace(scripted_frame(brightness), number=next(count))
        frames.extend([lambda: heard.wait(60), frame, shown.set])

    def says(product):
        return Announcement(at=0.0, is_trigger=False, product=product)

    step(10)
    step(20, says("2"))
    step(70, says("lemon"))
    step(30, says("9"))
    step(40, says("2"))
    step(50, TriggerError("it is away"), lambda: None)
    step(60, says("1"))

    def ask():
        with pytest.raises(RequestError, match="product_from says what the line makes") as error:
            switching(asked, "cola")()
        told.append(error)

    frames.insert(4, ask)
    config = configured(tmp_path)
    numbered = tuple(replace(one, number=n) for n, one in enumerate(config.products, 1))
    config = replace(config, products=numbered)
    ran(config, *frames, product_source=ScriptedTriggers(*source))
    found = ends(config)
    products = [None, "lemon", "lemon", "9", "lemon", None, "cola"]
    assert [row["product"] for row in found] == products
    for row in found:
        if row["product"] in NAMES:
            assert_own(row)
        else:
            assert row["state"] == "ERROR"
    assert found[5]["reason"] == "nobody has said what product this part is"
    assert told
    with Ledger(config.ledger.path, agent_id="line-3", sinks=()) as ledger:
        changes = [(one.who, one.old, one.new) for one in ledger.changes()]
    assert changes == [("product_from", "cola", "lemon"), ("product_from", "lemon", "cola")]


def test_a_camera_that_sees_something_else_has_a_bundle_of_its_own(tmp_path, asked):
    """Two cameras, two products: each has its inspector, threshold and ids."""
    config = configured(tmp_path)
    top, side = (replace(config.cameras[0], name=name) for name in ("top", "side"))
    config = replace(config, cameras=(top, side))
    products = {name: ready()[name] for name in NAMES[:2]}
    views = {
        (name, "side"): (
            Scoring(number),
            Model(threshold=10 * number + 0.2, bundle_id=f"{name}, side"),
        )
        for name, number in (("cola", 5), ("lemon", 6))
    }
    told = []

    def change():
        told.append(asked[-1].thresholds())
        asked[-1].set_threshold(50.1, by="Ada", nonce="", camera="side", force=True)
        with pytest.raises(RequestError, match="camera: has no bundle of its own"):
            asked[-1].set_threshold(1, by="Ada", nonce="", camera="top", force=True)

    switched = threading.Event()
    inspector, model = products["cola"]
    run_station(
        config,
        cameras=[
            ScriptedCamera(30, change, switching(asked, "lemon"), switched.set, 31),
            ScriptedCamera(lambda: switched.wait(20), 31, 32),
        ],
        inspector=inspector,
        model=model,
        products=lambda: products,
        views=lambda: views,
    )
    found = {(row["camera"], row["product"]): row for row in ends(config)}
    whose = {key: (int(row["score"] // 10), row["bundle_id"]) for key, row in found.items()}
    assert whose == {
        ("top", "cola"): (0, "bundle of cola"),
        ("top", "lemon"): (1, "bundle of lemon"),
        ("side", "lemon"): (6, "lemon, side"),
    }
    assert told[0]["cameras"] == {"side": {"threshold": 50.2, "calibrated": 50.2}}
    assert found["side", "lemon"]["threshold"] == 60.2


def test_a_part_whose_frame_was_taken_for_another_product_is_not_inspected(tmp_path, asked):
    camera = SetUpCamera(0, 1, switching(asked, "lemon"), 2, 3, 4, before=2)
    config = configured(tmp_path)
    ran(config, camera=camera)
    found = ends(config)
    assert [row["product"] for row in found] == ["cola"] * 2 + ["lemon"] * 3
    assert [row["state"] for row in found] == ["OK", "OK", "ERROR", "ERROR", "OK"]
    assert found[2]["reason"] == "the camera had the features of cola when it exposed"


def test_a_camera_that_refuses_a_product_leaves_the_line_with_the_old_one(tmp_path, asked):
    refused = []

    def ask():
        with pytest.raises(RequestError) as error:
            switching(asked, "lemon")()
        refused.append(str(error.value))

    camera = SetUpCamera(0, 1, ask, 2, 3, refuses=("lemon",))
    config = configured(tmp_path)
    ran(config, camera=camera)
    assert refused == ["camera main does not take Gain; the line goes on with cola"]
    assert camera.had == ["cola", "", "cola"]
    assert {row["product"] for row in ends(config)} == {"cola"}


def test_a_camera_is_set_up_for_what_is_announced(tmp_path):
    clock, stop = ManualClock(), threading.Event()
    frames, triggers = [], []
    for number, product in enumerate(["cola", "lemon", "beer", "lemon", "cola"]):
        frame = replace(scripted_frame(10), number=number)
        seen, announced = threading.Event(), threading.Event()
        triggers += [Announcement(at=clock.now(), product=product), announced.set]
        triggers.append(lambda seen=seen: seen.wait(60))
        frames += [lambda announced=announced: announced.wait(60), frame, seen.set]
    trigger = MqttTriggerSettings(
        host="127.0.0.1", topic="parts", payload="json", product_key="product", max_ms=50
    )
    config, camera = configured(tmp_path, trigger=trigger), SetUpCamera(*frames)
    sources = {"main": ScriptedTriggers(*triggers)}
    ran(config, camera=camera, triggers=sources, clock=clock, stop=stop)
    assert camera.had == ["cola", "lemon", "cola"]
    assert [row["state"] for row in ends(config)] == ["OK", "OK", "ERROR", "OK", "OK"]


def test_a_restarted_line_makes_what_it_made(tmp_path, asked):
    config = configured(tmp_path)
    ran(config, 1, switching(asked, "lemon"), 2)
    ran(config, 3)
    assert [row["product"] for row in ends(config)] == ["cola", "lemon", "lemon"]
    with Ledger(config.ledger.path, agent_id="line-3", sinks=()) as ledger:
        assert ledger.product() == "lemon"
        (change,) = ledger.changes()
    assert (change.kind, change.who, change.why) == ("product", "Ada", "a test")
    assert (change.old, change.new) == ("cola", "lemon")


def test_a_threshold_is_changed_for_the_product_in_force(tmp_path, asked):
    config = configured(tmp_path)
    told = []

    def change():
        told.append(asked[-1].set_threshold(10.2, by="Ada", nonce="", force=True))

    ran(config, 30, switching(asked, "lemon"), change, 30, switching(asked, "cola"), 30)
    assert told == [{"threshold": 10.2, "calibrated": 10.5}]
    assert [(row["state"], row["threshold"]) for row in ends(config)] == [
        ("OK", 0.5),
        ("NG", 10.2),
        ("OK", 0.5),
    ]


def test_a_product_that_there_is_not_is_refused(tmp_path, asked):
    refused = []

    def ask():
        with pytest.raises(RequestError, match="product: write cola or lemon or water") as error:
            switching(asked, "beer")()
        refused.append(error)
        assert asked[-1].product() == {"product": "cola", "products": list(NAMES)}

    ran(configured(tmp_path), 1, ask, 2)
    assert refused
    assert {row["product"] for row in ends(configured(tmp_path))} == {"cola"}


FILE = """
agent: {id: line-3}
products:
  - {name: cola, bundle: {path: cola}}
  - {name: lemon, bundle: {path: lemon}}
camera: {type: conveyor}
mqtt: {host: localhost}
"""


def test_the_first_product_is_what_the_line_begins_with(tmp_path):
    (tmp_path / "agent.yaml").write_text(FILE)
    config = load_config(tmp_path / "agent.yaml")
    assert config.bundle == config.products[0].bundle
    assert [one.bundle.path for one in config.products] == [tmp_path / "cola", tmp_path / "lemon"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("products:", "bundle: {path: x}\nproducts:", r"bundle: .*stands beside products"),
        ("name: lemon", "name: cola", r"products\.1\.name: 'cola': another product has this name"),
        ("bundle: {path: lemon}", "path: lemon", r"products\.1"),
        (
            "{type: conveyor}",
            "{type: conveyor, trigger: {type: mqtt, host: h, topic: t, product_key: p}}",
            "product_key is a key of a JSON object",
        ),
    ],
)
def test_products_that_cannot_be_are_refused_in_one_line(tmp_path, old, new, said):
    (tmp_path / "agent.yaml").write_text(FILE.replace(old, new))
    with pytest.raises(ConfigurationError, match=said):
        load_config(tmp_path / "agent.yaml")


FEATURES = """
agent: {id: line-3}
products:
  - {name: cola, bundle: {path: cola}, camera: {features: {Gain: 2}}}
  - {name: lemon, bundle: {path: lemon}, cameras: [{name: main, features: {Gain: 3}}]}
camera: {type: genicam, features: {ExposureTime: 4}}
mqtt: {host: localhost}
"""


def test_features_of_a_product_stand_beside_those_of_its_camera(tmp_path):
    (tmp_path / "agent.yaml").write_text(FEATURES)
    config = load_config(tmp_path / "agent.yaml")
    assert config.features("main") == {"cola": (("Gain", 2),), "lemon": (("Gain", 3),)}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "{Gain: 3}",
            "{}",
            r"products\.1\.name: 'lemon': says nothing of Gain, which",
        ),
        ("{Gain: 3}", "{Gain: 3, Width: 8}", r"products\.0\.name: 'cola': says nothing of Width"),
        ("name: main", "name: top", r"products\.1\.cameras\.0\.name: 'top': is no camera"),
        ("Gain: 2", "Gain: [2]", r"products\.0\.camera\.features: .*Gain should be one number"),
        ("Gain: 2", "TriggerMode: On", "TriggerMode.*belongs to the camera"),
        (
            "type: genicam, features: {ExposureTime: 4}",
            "type: conveyor",
            "conveyor has no features",
        ),
        (
            "features: {Gain: 2}",
            "features: {Gain: 2}, bundle: {path: x}",
            r"products\.0\.camera\.bundle\.path.*is that of the only camera",
        ),
    ],
)
def test_features_that_cannot_be_are_refused_in_one_line(tmp_path, old, new, said):
    (tmp_path / "agent.yaml").write_text(FEATURES.replace(old, new))
    with pytest.raises(ConfigurationError, match=said):
        load_config(tmp_path / "agent.yaml")


def test_what_is_calibrated_is_one_product_at_the_cameras_that_share_its_bundle(tmp_path):
    views = "cameras: [{name: side, bundle: {path: side}}]"
    text = FILE.replace("{path: cola}", "{path: cola}, " + views)
    cameras = "cameras: [{name: top, type: conveyor}, {name: side, type: conveyor}]"
    (tmp_path / "agent.yaml").write_text(text.replace("camera: {type: conveyor}", cameras))
    config = load_config(tmp_path / "agent.yaml")

    def made(*choice):
        one = config.making(*choice)
        return one.bundle.path.name, [camera.name for camera in one.cameras]

    assert made(None) == ("cola", ["top"])
    assert made("cola", "side") == ("side", ["side"])
    assert made("lemon") == ("lemon", ["top", "side"])
    assert made("lemon", "side") == ("lemon", ["side"])
    for wrong, said in ((("beer",), "--product.*write cola or lemon"), ((None, "x"), "--camera")):
        with pytest.raises(ConfigurationError, match=said):
            config.making(*wrong)


FROM = "product_from: {type: modbus, host: h, product_at: 5}\n"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("product_at", "count_at", "product_from: .*should say what the line makes"),
        ("5}", "5, count_at: 4}", "product_from: .*should say what the line makes"),
        (FROM, "product_from: {type: modbus, host: h}", "product_from: .*write count_at"),
        (
            "{path: cola}",
            "{path: cola}, number: 1",
            r"products\.1\.number.*is product cola already",
        ),
        ("name: cola", "name: '1'", r"products\.1\.number.*is product 1 already"),
        (
            "{type: conveyor}",
            "{type: conveyor, trigger: {type: modbus, host: h, product_at: 5}}",
            "camera.trigger: .*write it as product_from",
        ),
    ],
)
def test_what_a_plc_could_not_say_is_refused(tmp_path, old, new, said):
    text = FROM + FILE.replace("{path: lemon}", "{path: lemon}, number: 1")
    (tmp_path / "agent.yaml").write_text(text.replace(old, new))
    with pytest.raises(ConfigurationError, match=said):
        load_config(tmp_path / "agent.yaml")


def test_a_trigger_that_names_products_needs_some(tmp_path):
    trigger = "{type: mqtt, host: h, topic: t, payload: json, product_key: p}"
    (tmp_path / "agent.yaml").write_text(
        "agent: {id: a}\nbundle: {path: b}\nmqtt: {host: localhost}\n"
        f"camera: {{type: conveyor, trigger: {trigger}}}\n"
    )
    with pytest.raises(ConfigurationError, match="names products, and there are none"):
        load_config(tmp_path / "agent.yaml")


def test_a_broker_switches_a_line_that_runs(tmp_path, broker):
    settings = replace(broker.settings, commands=("product", "switch_product"))
    config = replace(
        configured(tmp_path),
        cameras=(ConveyorSettings(parts_per_minute=2400),),
        sinks=(settings,),
    )
    stop, seen = threading.Event(), {name: threading.Event() for name in NAMES}
    products = ready()

    def run():
        run_station(
            config,
            cameras=[ConveyorCamera(config.cameras[0], CameraContext(stop=stop))],
            inspector=products["cola"][0],
            model=products["cola"][1],
            products=lambda: products,
            stop=stop,
            observers=[lambda part: seen[part.product].set()],
        )

    line = threading.Thread(target=run)
    line.start()
    try:
        assert seen["cola"].wait(60)
        told = ask(settings, "line-3", "switch_product", within_s=60, product="water", by="Ada")
        assert told == {"product": "water", "products": list(NAMES)}
        assert seen["water"].wait(60)
        assert ask(settings, "line-3", "product", within_s=60)["product"] == "water"
    finally:
        stop.set()
        line.join()
    found = ends(config)
    for row in found:
        assert_own(row)
    names = [row["product"] for row in found]
    assert names == sorted(names)
    assert set(names) == {"cola", "water"}
