"""The engineer's screens by real clicks in Chromium."""

import pytest

from agent.golden import protocols
from agent.services.page.access import Role
from engine.bundle import open_bundle
from tests.agent.services.page.conftest import shaped
from tests.agent.services.page.line import PASSWORD, Line, until
from tests.agent.services.page.test_browser import CONTRASTS, SMALL, texts, words
from tests.calibrations import calibrated
from tests.tiny_bundle import defective_part, good_part, tiny_bundle

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    bundle = tiny_bundle(folder / "bundle")
    calibrated(bundle, 3.0, [0.9 + n / 1000 for n in range(100)])
    with Line(folder, bundle=bundle.path, audit=1.0) as running:
        running.show(*(good_part(n) for n in range(4)), defective_part(5), defective_part(6))
        yield running


@pytest.fixture
def engineer(fresh, line):
    enter(fresh, line, "/threshold")
    return fresh


def enter(browser, line, path):
    """An engineer logs in, and looks at a screen."""
    browser.get(f"{line.url}/login?next={path}")
    browser.find_element("name", "name").send_keys(Role.ENGINEER.name.lower())
    browser.find_element("name", "password").send_keys(PASSWORD)
    browser.find_element("css selector", "form .main").click()
    until(lambda: browser.current_url == f"{line.url}{path}")


def click(browser, text):
    script = (
        "return [...document.querySelectorAll('button, a.button')]"
        ".find((e) => e.innerText.trim() === arguments[0])"
    )
    until(lambda: browser.execute_script(script, text))
    browser.execute_script(script, text).click()


def write(browser, name, text, within="form"):
    field = browser.find_element("css selector", f"{within} [name='{name}']")
    field.clear()
    field.send_keys(text)


def test_a_threshold_is_tried_set_and_taken_back(engineer, line):
    write(engineer, "threshold", "20")
    click(engineer, "What would change?")
    until(lambda: "2 NG parts of the last 7 days would be OK" in texts(engineer, "h2"))
    until(lambda: engineer.execute_script(LOADED) == [])
    for scheme, width in [("light", 1280), ("dark", 390)]:
        shaped(engineer, width=width, scheme=scheme)
        assert engineer.execute_script("return document.documentElement.scrollWidth") <= width
        assert engineer.execute_script(SMALL) == []
        for ink, ground, text in engineer.execute_script(CONTRASTS):
            light, dark = sorted([words(ink), words(ground)], reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (scheme, text)
    write(engineer, "why", "too many alarms", within=".narrow")
    click(engineer, "Set the threshold")
    until(lambda: any("lies outside" in text for text in texts(engineer, "#problem")))
    engineer.find_element("name", "force").click()
    click(engineer, "Set the threshold")
    until(lambda: texts(engineer, "dl .large dd")[:2] == ["20", "3"])
    write(engineer, "why", "it was a try", within=".narrow")
    click(engineer, "Use the calibrated 3 again")
    until(lambda: texts(engineer, "dl .large dd")[:2] == ["3", "3"])
    engineer.get(f"{line.url}/report")
    assert texts(engineer, "td:nth-child(6)").count("too many alarms") == 1


LOADED = "return [...document.images].filter((e) => e.loading !== 'lazy' && !e.naturalWidth)"


def test_golden_samples_are_asked_for_one_by_one(engineer, line):
    engineer.get(f"{line.url}/golden")
    click(engineer, "Begin: the next parts are the samples")
    until(lambda: "Show a GOOD sample" in texts(engineer, ".word"))
    line.show(good_part(11), good_part(12))
    until(lambda: "Show a DEFECTIVE sample" in texts(engineer, ".word"))
    line.show(defective_part(13), good_part(14))
    until(lambda: protocols(line.config.check.folder))
    until(lambda: any("sample 4 (defective) was OK" in text for text in texts(engineer, "p")))
    assert len(texts(engineer, ".protocol[open] .tile.ng")) == 1
    until(lambda: engineer.execute_script("return document.images[0]?.naturalWidth > 0"))


def test_a_trained_bundle_is_promoted_and_rolled_back_by_clicks(engineer, line):
    first = open_bundle(line.bundle).id
    out = line.folder / "page" / "retrain" / "20260101-000000" / "out"
    second = tiny_bundle(out / "bundle", gain=60.0)
    calibrated(second, 4.0)
    (out / "result.json").write_text(
        f'{{"bundle_id": "{second.id}", "threshold": 4.0, "max_false_reject": 0.05,'
        ' "proved": true, "counts": {"good": 1, "defective": 2, "calibration": 3}}'
    )
    engineer.get(f"{line.url}/retrain")
    write(engineer, "why", "learnt 60 labels", within="form[hx-post='/retrain/promote']")
    click(engineer, "Put the new bundle in force")
    until(lambda: "✓ This bundle is in force." in texts(engineer, "b"))
    assert open_bundle(line.bundle).id == second.id
    write(engineer, "why", "too many alarms", within="form[hx-post='/retrain/rollback']")
    click(engineer, "Bring the bundle before back")
    until(lambda: f"Bundle {first[:12]}" in texts(engineer, "p"))


def test_history_and_report_are_reached_by_the_menu(engineer):
    for name in ("History", "Report", "System"):
        script = "[...document.querySelectorAll('nav a')].find((e) => e.innerText === arguments[0])"
        engineer.execute_script(f"{script}.click()", name)
        until(lambda name=name: texts(engineer, "h1") == [name])
    engineer.back()
    click(engineer, "Last 7 days")
    until(lambda: "parts from" in texts(engineer, ".statement")[0])
