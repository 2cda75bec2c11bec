"""The page as people use it: in Chromium, by clicks and keys, on a line that runs."""

import os
import re
import signal
from pathlib import Path

import pytest

from agent.services.page.access import Role
from agent.services.page.screens import screens
from tests.agent.services.page.conftest import shaped
from tests.agent.services.page.line import PASSWORD, Line, until

pytestmark = pytest.mark.browser
HOSTILE = '<img src=x onerror="document.title=1">"\'><script>alert(1)</script>{{7133*7919}}'


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    names = ("main", HOSTILE[:64])
    with Line(tmp_path_factory.mktemp("line"), names=names, audit=1.0) as running:
        running.show(0.9, 0.48, 0.1, 0.8, ids=["bad-1", "nearly-2", HOSTILE, "bad-4"])
        running.show(0.7, camera=names[1], ids=[HOSTILE])
        yield running


def texts(browser, selector):
    script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText.trim())"
    return browser.execute_script(script, selector)


def press(browser, *keys):
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def log_in(browser, line, role=Role.OPERATOR):
    browser.get(f"{line.url}/login?next=/review")
    browser.find_element("name", "name").send_keys(role.name.lower())
    browser.find_element("name", "password").send_keys(PASSWORD)
    browser.find_element("css selector", "form .main").click()
    until(lambda: browser.current_url == f"{line.url}/review")


def words(colour):
    red, green, blue = (int(each) / 255 for each in re.findall(r"\d+", colour)[:3])
    parts = [c / 12.92 if c <= 0.04 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(ink, ground):
    light, dark = sorted([words(ink), words(ground)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


CONTRASTS = """
const found = [];
const behind = (e) => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(c)) return c;
  } return "rgb(255,255,255)"; };
for (const e of document.querySelectorAll("main *, header *")) {
  if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
  const box = e.getBoundingClientRect();
  if (!box.width || e.closest(".unseen, :disabled")) continue;
  found.push([getComputedStyle(e).color, behind(e), e.textContent.trim().slice(0, 30)]);
}
return found;
"""
SMALL = """
return [...document.querySelectorAll("button, a, input:not([type=hidden]), select, summary")]
  .map((e) => [e.getBoundingClientRect(), e.textContent.trim()])
  .filter(([b]) => b.width > 1 && b.height < 44).map(([b, t]) => `${t}: ${b.height}`);
"""


@pytest.mark.parametrize("width", [1280, 1024, 390])
def test_every_screen_fits_and_can_be_read(fresh, line, width):
    log_in(fresh, line, Role.ADMIN)
    for path in ["/login", *(f"/{screen.name}" for screen in screens())]:
        shaped(fresh, width=width, scheme="light")
        fresh.get(line.url + path)
        for scheme in ("light", "dark"):
            shaped(fresh, width=width, scheme=scheme)
            across = fresh.execute_script("return document.documentElement.scrollWidth")
            assert across <= width, path
            assert fresh.execute_script(SMALL) == [], path
            for ink, ground, text in fresh.execute_script(CONTRASTS):
                assert contrast(ink, ground) >= 4.5, (path, scheme, text, ink, ground)
        unnamed = fresh.execute_script(
            "return [...document.querySelectorAll('img')].filter((e) => !e.alt).length +"
            " [...document.querySelectorAll('input, select')].filter("
            "(e) => e.type !== 'hidden' && !e.labels.length && !e.ariaLabel).length"
        )
        assert unnamed == 0, path


def test_what_happens_on_the_line_is_seen_without_a_click(fresh, line):
    fresh.get(f"{line.url}/line")
    until(lambda: "NG" in texts(fresh, ".verdict .word")[0])
    # Frames are kept once somebody looks.
    line.show(0.2, ids=["new-1"])
    until(lambda: "new-1" in texts(fresh, ".verdict .of")[0])
    assert texts(fresh, ".verdict .word") == ["✓ OK"]

    def shows_new_part():
        line.show(0.95, ids=["new-2"])
        return any("NG" in text and "new-2" in text for text in texts(fresh, ".camera .caption"))

    until(shows_new_part)
    loaded = "return document.querySelector('.camera img').naturalWidth"
    until(lambda: fresh.execute_script(loaded) > 0)

    def adds_up():
        script = (
            "return Object.fromEntries([...document.querySelectorAll('dd[data-state]')]"
            ".map((e) => [e.dataset.state, Number(e.textContent)]))"
        )
        counts = fresh.execute_script(script)
        triggers = counts.pop("triggers")
        return triggers == sum(counts.values()) == line.shown()

    until(adds_up)
    assert len(texts(fresh, "#strip canvas")) == 1
    assert re.fullmatch(r"\d+ s", texts(fresh, "#age")[0])


def test_a_page_that_is_killed_comes_back_by_itself(fresh, line):
    fresh.get(f"{line.url}/line")
    until(lambda: texts(fresh, ".verdict .word"))
    starts = line.page._child.starts
    os.kill(line.page.pid, signal.SIGKILL)
    until(lambda: line.page._child.starts > starts)
    line.show(0.3, ids=["after-the-kill"])
    until(lambda: "after-the-kill" in texts(fresh, ".verdict .of")[0])
    assert texts(fresh, ".lost") == []


def test_parts_are_judged_by_keys_alone(fresh, line):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    line.show(0.91, 0.92, 0.93, 0.94, ids=["k1", "k2", "k3", "k4"])
    log_in(fresh, line)
    names = lambda: fresh.execute_script(  # noqa: E731
        "return [...document.querySelectorAll('.grid .id[title]')].map((e) => e.title)"
    )
    assert names()[:4] == ["k4", "k3", "k2", "k1"]

    def said(name):
        found = [each for each in line.records() if each["part_id"] == name]
        return found[-1]["label"] if found else None

    press(fresh, "g")
    until(lambda: said("k4") == "good")
    press(fresh, "d")
    until(lambda: said("k3") == "defective")
    ActionChains(fresh).key_down(Keys.SHIFT).send_keys(Keys.ARROW_RIGHT).key_up(
        Keys.SHIFT
    ).perform()
    assert texts(fresh, "#chosen") == ["2 parts"]
    press(fresh, "u")
    until(lambda: (said("k2"), said("k1")) == ("unsure", "unsure"))
    press(fresh, "z")
    until(lambda: (said("k2"), said("k1")) == ("withdrawn", "withdrawn"))
    until(lambda: texts(fresh, ".grid .badge")[:4] == ["good", "defective", "", ""])
    until(lambda: "k" in texts(fresh, "#detail figcaption")[0])
    assert {each["who"] for each in line.records() if each["part_id"] == "k1"} == {"operator"}


def test_parts_are_judged_by_finger(fresh, line):
    line.show(0.95, ids=["f1"])
    log_in(fresh, line)
    fresh.find_element("css selector", ".grid .tile").click()
    fresh.find_element("css selector", ".say.defective").click()
    until(lambda: any(each["part_id"] == "f1" for each in line.records()))
    fresh.find_element("id", "undo").click()
    until(lambda: [e["label"] for e in line.records() if e["part_id"] == "f1"][1:] == ["withdrawn"])


def test_names_from_outside_are_text(fresh, line):
    log_in(fresh, line, Role.ADMIN)
    for path in [*(f"/{screen.name}" for screen in screens()), "/review?queue=&label="]:
        fresh.get(line.url + path)
        assert fresh.title != "1"
        found = fresh.execute_script(
            "return document.querySelectorAll('main script, img[src=\"x\"], [onerror]').length"
        )
        assert found == 0
        assert str(7133 * 7919) not in texts(fresh, "main")[0]
    titles = "return [...document.querySelectorAll('.grid .id[title]')].map((e) => e.title)"
    assert HOSTILE in fresh.execute_script(titles)


def test_an_idle_user_may_look_but_not_label(fresh, line):
    log_in(fresh, line)
    assert fresh.find_elements("id", "labelling")
    fresh.find_element("css selector", ".who button").click()
    until(lambda: fresh.current_url.endswith("/line"))
    fresh.get(f"{line.url}/review")
    assert not fresh.find_elements("id", "labelling")


SHA256 = {
    "htmx.min.js": "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130",
    "hx-sse.min.js": "18ef2761356ec1fe0bb6d92612315b37517a7c1e9856b661c5ae81fef239d103",
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}


def test_scripts_of_others_are_as_published():
    import hashlib

    import agent.services.page.site

    folder = agent.services.page.site.STATIC
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in SHA256}
    assert found == SHA256
    notices = (folder / "NOTICES.txt").read_text()
    assert "Zero-Clause BSD" in notices
    assert "Leon Sorokin" in notices
    assert {each.name for each in Path(folder).glob("*.js")} - {*SHA256} == {"page.js"}
    assert len((folder / "page.js").read_text().splitlines()) <= 300
