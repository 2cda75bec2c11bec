import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from calibration.outlook import costs_of, deciding, promise
from calibration.record import Calibration, calibrate
from calibration.report import REPORT, detection, histogram_text, misses, warnings
from calibration.report import write_report as write_page
from calibration.scores import Exhibit, Scores
from engine.bundle import Bundle
from engine.errors import CalibrationError
from engine.frame import Box
from tests.inspections import inspection
from tests.tiny_bundle import good_part, tiny_bundle


def exhibit(name: str, score: float) -> Exhibit:
    found = inspection(
        score,
        Box.whole(96, 80),
        Box(left=10, top=10, right=40, bottom=30),
        score_map=np.full((8, 8), score, np.float32),
    )
    return Exhibit(name=name, score=score, pixels=good_part(0), inspection=found)


def scores(values: tuple[float, ...], *exhibits: Exhibit, digest: str = "a") -> Scores:
    """Parts with these scores; those of the exhibits, the highest or lowest, have their names."""
    names = {one.score: one.name for one in exhibits}
    return Scores(
        values=values,
        names=tuple(
            names.get(value, f"parts/good/{place}.png") for place, value in enumerate(values)
        ),
        hashes=frozenset({digest * 64}),
        exhibits=exhibits,
    )


GOOD = scores(
    tuple(1 + i / 200 for i in range(100)),
    exhibit("parts/<good>/1.png", 1.495),
    exhibit("parts/good/2.png", 1.49),
)
DEFECTIVE = scores(
    (0.5, *[5.0] * 19),
    exhibit("parts/bad/missed.png", 0.5),
    exhibit("parts/bad/found.png", 5.0),
    digest="b",
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "bundle")


def made(bundle: Bundle, good: Scores = GOOD, defective: Scores | None = DEFECTIVE) -> Calibration:
    return calibrate(
        bundle,
        good,
        defective,
        precision="fp32",
        backend="onnxruntime cpu fp32",
        max_false_reject=0.05,
        confidence=0.95,
    )


def decided(calibration: Calibration, good: Scores) -> str:
    return deciding(calibration, costs_of(calibration, good))


def write_report(
    path: Path, calibration: Calibration, good: Scores, defective: Scores | None
) -> None:
    write_page(path, calibration, costs_of(calibration, good), good, defective)


def test_the_promise_is_one_sentence_with_its_n(bundle: Bundle) -> None:
    assert promise(made(bundle)) == (
        "At most 5 % of good parts will be rejected, with 95 % confidence: "
        "1 of n=100 good parts scored above the threshold 1.49."
    )


def test_detection_comes_with_its_interval(bundle: Bundle) -> None:
    assert detection(made(bundle)) == (
        "19 of 20 defective parts are detected: 95 % (95 % interval: 75.1 % to 99.9 %)."
    )
    assert "not known" in detection(made(bundle, defective=None))


def test_what_would_pass_is_the_headline(bundle: Bundle) -> None:
    assert misses(made(bundle)) == "1 of your 20 defects would pass."
    assert misses(made(bundle, defective=scores((5.0, 6.0), digest="b"))) == (
        "None of your 2 defects would pass."
    )
    assert misses(made(bundle, defective=None)) == ""


def test_the_part_that_sets_the_threshold_is_named(bundle: Bundle) -> None:
    assert decided(made(bundle), GOOD) == (
        "good/2.png sets the threshold; 1 good part may score higher. "
        "If it is not really good, remove it: the threshold would be 1.485."
    )
    few = scores((*([1.0] * 58), 9.25), exhibit("parts/good/021.jpg", 9.25))
    assert decided(made(bundle, few), few) == (
        "good/021.jpg alone sets the threshold. If it is not really good, remove it: "
        "there would be too few good parts for this promise."
    )
    enough = scores((*([1.0] * 59), 9.25), exhibit("parts/good/021.jpg", 9.25))
    assert decided(made(bundle, enough), enough).endswith("remove it: the threshold would be 1.")


def test_nothing_to_warn_of_gives_no_warning(bundle: Bundle) -> None:
    assert warnings(made(bundle), GOOD, DEFECTIVE) == []


def test_warnings_name_what_was_set_aside(bundle: Bundle) -> None:
    good = replace(
        GOOD,
        training=tuple(f"t{i}.png" for i in range(8)),
        duplicates=("d.png",),
        unreadable=("u.png: is damaged",),
        look_alikes=41,
    )
    training, alike, duplicates, unreadable = warnings(made(bundle, good), good, DEFECTIVE)
    assert training.startswith("8 pictures set aside: training images")
    assert "t0.png, t1.png, t2.png, t3.png, t4.png and 3 more" in training
    assert "41 of the 100 good pictures look like another one" in alike
    # 59 parts of which 1 exceeds: (1-p)^59 + 59 p (1-p)^58 = 0.05.
    assert "59 parts remain, which promise no better than 7.79 %" in alike
    assert duplicates.startswith("1 picture set aside")
    assert "u.png: is damaged" in unreadable


def test_the_text_histogram_shows_every_part(bundle: Bundle) -> None:
    calibration = made(bundle)
    lines = histogram_text(calibration).splitlines()
    head, *rows = lines
    assert head.split() == ["score", "up", "to", "good", "defective"]
    cut = next(i for i, row in enumerate(rows) if " threshold " in row)
    assert rows[cut].split()[0] == "1.49"
    below, above = rows[:cut], rows[cut + 1 :]
    assert any("░" in row for row in below), "the missed defect shows"
    assert any("█" in row for row in above), "the false reject shows"
    assert max(map(len, lines)) <= 78
    numbers = [int(n) for row in rows[:cut] + above for n in re.findall(r" (\d+)(?= |$)", row)]
    assert sum(numbers) == 120


def test_the_text_histogram_of_good_parts_alone(bundle: Bundle) -> None:
    text = histogram_text(made(bundle, defective=None))
    assert "defective" not in text
    assert "░" not in text


class Links(HTMLParser):
    """Collects what a page would load, and its words."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_stands_alone(bundle: Bundle) -> None:
    calibration = made(bundle)
    path = bundle.path / REPORT
    write_report(path, calibration, GOOD, DEFECTIVE)
    html = path.read_text(encoding="utf-8")
    found = Links()
    found.feed(html)
    assert len(found.loads) == 4
    assert all(load.startswith("data:image/jpeg;base64,") for load in found.loads)
    assert not {"script", "link", "iframe", "good"} & set(found.tags)
    assert "url(" not in html
    assert "@import" not in html
    words = " ".join(found.words)
    assert promise(calibration) in words
    assert detection(calibration) in words
    assert misses(calibration) in words
    assert "about 95 will be found (20 defects: 75 to 99)" in words
    assert "Is this one really good?" in words
    assert "What each promise costs" in words
    assert "<good>/1.png" in words
    assert words.count("would be rejected") == 1
    assert words.count("missed") >= 2


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'])
def test_names_from_outside_are_text(bundle: Bundle, hostile: str) -> None:
    good = replace(
        scores(GOOD.values, exhibit(f"good/{hostile}", 9.0), exhibit(hostile, 1.49)),
        training=(hostile,),
        duplicates=(hostile,),
        unreadable=(f"{hostile}: is damaged",),
    )
    calibration = replace(
        made(bundle, good), backend=hostile, versions={hostile: hostile}, created_at=hostile
    )
    path = bundle.path / REPORT
    write_report(path, calibration, good, DEFECTIVE)
    found = Links()
    found.feed(path.read_text(encoding="utf-8"))
    assert "script" not in found.tags
    assert found.tags.count("img") == 4
    assert " ".join(found.words).count(hostile) >= 8


def test_the_page_without_defects(bundle: Bundle) -> None:
    path = bundle.path / REPORT
    write_report(path, made(bundle, defective=None), GOOD, None)
    html = path.read_text(encoding="utf-8")
    assert "Defective parts" not in html
    assert html.count("<svg") == 1


def test_a_page_that_cannot_be_written_is_an_error(bundle: Bundle) -> None:
    with pytest.raises(CalibrationError, match="cannot be written"):
        write_report(bundle.path / "nowhere" / REPORT, made(bundle), GOOD, DEFECTIVE)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_the_whole_page(bundle: Bundle, scheme: str) -> None:
    import shutil

    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    driver, browser = shutil.which("chromedriver"), shutil.which("chromium")
    if not (driver and browser):
        pytest.skip("needs Chromium and its driver")
    path = bundle.path / REPORT
    write_report(path, made(bundle), GOOD, DEFECTIVE)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    page = webdriver.Chrome(options=options, service=Service(driver))
    try:
        size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        page.get(path.as_uri())
        wide, high, ground, ink = page.execute_script(
            "const style = getComputedStyle(document.body);"
            "return [document.documentElement.scrollWidth, innerWidth,"
            " style.backgroundColor, style.color]"
        )
        assert wide <= high == 390
        assert brightness(ground) > 200 if scheme == "light" else brightness(ground) < 60
        assert abs(brightness(ground) - brightness(ink)) > 150
        loaded = page.execute_script("return [...document.images].every(i => i.naturalWidth)")
        assert loaded
        assert page.get_log("browser") == []
    finally:
        page.quit()


def brightness(colour: str) -> float:
    red, green, blue = map(int, re.findall(r"\d+", colour)[:3])
    return (red + green + blue) / 3
