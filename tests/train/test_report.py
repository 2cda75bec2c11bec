import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from agent.commands.train import _report
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.bundle import Bundle, write_manifest
from engine.errors import TrainingError
from engine.frame import Box
from engine.methods import open_method
from tests.inspections import inspection
from tests.tiny_bundle import cross_fitted, tiny_bundle
from train.checkpoint import Epoch
from train.datasets import Dropped, Images, Listed, Source, Split, find_source
from train.export.gate import Written, shown_good
from train.recipes.line import Line
from train.recipes.paper import Paper
from train.report import REPORT, Outcome, Seen, advice, examine, summary, write_report
from train.run import Finished

EPOCHS = tuple(
    Epoch(
        number=n,
        of=8,
        loss=4 / n,
        learning_rate=1e-3 / n,
        separation=0.9 if n == 4 else float("nan"),
        seconds=n,
    )
    for n in range(1, 9)
)


def bundle_of(folder: Path, split: Split) -> Bundle:
    """A bundle as `agent train` writes it, whose network needs no training."""
    bundle = tiny_bundle(folder)
    training = replace(
        bundle.manifest.training, good=len(split.train_good), defective=len(split.train_defective)
    )
    return write_manifest(folder, replace(bundle.manifest, training=training))


def finished(bundle: Bundle, source: Source, split: Split, **changes: object) -> Finished:
    """A training that has just ended in `bundle`."""
    images = Images(source)
    with OnnxRuntimeBackend(bundle) as backend:
        inspector = open_method(bundle.manifest.method, backend)
        inspections = {
            item.path: inspector.inspect(images.pixels(item))
            for item in (*shown_good(split), *split.train_defective)
        }
    written = Written(bundle=bundle, inspections=inspections)
    plain = Finished(written=written, settings=Line(), split=split, images=images, epochs=EPOCHS)
    return replace(plain, **changes)


@pytest.fixture
def bundle(tmp_path: Path, split: Split) -> Bundle:
    return bundle_of(tmp_path / "bundle", split)


@pytest.fixture
def own(parts: Path, tmp_path: Path) -> Source:
    """A copy of the parts that a test may damage."""
    return find_source(Path(shutil.copytree(parts, tmp_path / "parts")), None, None)


def listed(kind: str, number: int) -> Listed:
    mask = None if kind == "good" else f"ground_truth/{kind}/{number:03}_mask.png"
    return Listed(path=f"test/{kind}/{number:03}.png", sha256="0" * 64, kind=kind, mask=mask)


def seen(kind: str, score: float, number: int = 0) -> Seen:
    found = inspection(
        score,
        Box.whole(96, 80),
        Box(left=10, top=10, right=40, bottom=30),
        attention=np.eye(8, dtype=np.float32),
        score_map=np.full((8, 8), score, np.float32),
    )
    return Seen(item=listed(kind, number), inspection=found)


def outcome(
    bundle: Bundle,
    *,
    good: list[float],
    defective: list[Seen],
    trained_on: int = 60,
    spare: tuple[Listed, ...] = (),
    **changes: object,
) -> Outcome:
    """What a training with these scores came to; all good parts are held out."""
    split = Split(
        layout="plain",
        seed=0,
        train_good=tuple(listed("good", 1000 + i) for i in range(trained_on)),
        held_out_good=tuple(listed("good", i) for i in range(len(good))),
        train_defective=tuple(one.item for one in defective),
        test=spare,
        dropped=(),
    )
    record = replace(bundle.manifest.training, good=trained_on, defective=len(defective))
    plain = Outcome(
        record=replace(record, seconds=252.0),
        settings=Line(),
        split=split,
        epochs=EPOCHS,
        good=tuple(seen("good", score, i) for i, score in enumerate(good)),
        defective=tuple(sorted(defective, key=lambda one: -one.score)),
        look_alikes=0,
        threshold=3.0,
        bundle_id=bundle.id,
    )
    return replace(plain, **changes)


CLEAR = [seen(kind, 5.0 + i, i) for kind in ("crack", "spot") for i in range(5)]
PLENTY = [2 - i / 300 for i in range(299)]


def test_nothing_to_collect_when_nothing_is_missing(bundle: Bundle) -> None:
    assert advice(outcome(bundle, good=PLENTY, defective=CLEAR)) == []


def test_masks_are_asked_for_where_defects_have_none(bundle: Bundle) -> None:
    bare = [replace(one, item=replace(one.item, mask=None)) for one in CLEAR[:3]]
    [sentence] = advice(outcome(bundle, good=PLENTY, defective=[*bare, *CLEAR[3:]]))
    assert sentence.startswith("3 of the 10 known defects have no mask.")


def test_cross_fitted_scores_lead_the_page(source: Source, split: Split, tmp_path: Path) -> None:
    bundle = cross_fitted(
        bundle_of(tmp_path / "bundle", split), [*([1.0] * 98), 7.5, 9.3], [5, 6, 10]
    )
    statement, path, has_promise = _report(finished(bundle, source, split))
    assert has_promise
    assert path is not None
    assert statement.startswith(
        "Look at good/099.png and good/098.png first: are they really good? They cost 2 of your 3 "
    )
    page = path.read_text(encoding="utf-8")
    assert page.index("Look at good/099.png") < page.index("like yours, about 33 will be")
    assert page.index("of 1 000 good parts at most 30 should be") < page.index("What to do next")
    assert "agent calibrate needs 59" not in page
    assert "Models that had not seen an image gave its score" in page


@pytest.mark.parametrize(
    ("held_out", "told"),
    [
        (0, "Good images held out: 0."),
        (1, "Good images held out: 1."),
        (58, "needs 59 that training has not seen: photograph 1 more. For 1 % it needs 299: 241"),
        (59, "held out: 59. That is enough for agent calibrate to promise that at most 5 "),
        (298, "For 1 % photograph 1 more (299)."),
    ],
)
def test_the_promise_says_how_many_good_parts_are_missing(
    bundle: Bundle, held_out: int, told: str
) -> None:
    found = outcome(bundle, good=PLENTY[:held_out], defective=CLEAR)
    [sentence] = advice(replace(found, good=tuple(seen("good", 2 - i / 300) for i in range(60))))
    assert told in sentence


def test_a_type_that_scores_like_a_good_part_is_named_with_both_pictures(bundle: Bundle) -> None:
    weak = [*CLEAR, seen("scratch", 2.0, 1), seen("scratch", 6.0, 2)]
    [sentence] = advice(outcome(bundle, good=PLENTY, defective=weak))
    assert sentence.startswith(
        "Type scratch: 1 of 2 known defects did not score above the good image good/000.png (2)."
    )
    assert "photograph more defects of this type" in sentence


def test_good_images_that_stand_apart_are_worth_a_look(bundle: Bundle) -> None:
    [one] = advice(outcome(bundle, good=[4.5, *PLENTY[1:]], defective=CLEAR))
    assert one.startswith(
        "Good images far above the others: good/000.png (scores above 3.24; three quarters of the "
        "good ones are below 1.75)."
    )
    [two] = advice(outcome(bundle, good=[4.5, 4.0, *PLENTY[2:]], defective=CLEAR))
    assert two.startswith("Good images far above the others: good/000.png, good/001.png (")


def test_types_with_one_example_or_none_are_named_with_what_the_data_still_has(
    bundle: Bundle,
) -> None:
    spare = (*(listed("dent", i) for i in range(3)), *(listed("stain", i) for i in range(2)))
    single, unknown = advice(
        outcome(bundle, good=PLENTY, defective=[*CLEAR, seen("dent", 9.0)], spare=spare)
    )
    assert single.startswith("Only one example each was learnt from: dent.")
    assert "the data holds 3 more of dent, kept for the test" in single
    assert unknown.startswith("These types were not learnt from: stain; the data holds 2 more")


def test_without_known_defects_real_ones_are_asked_for(bundle: Bundle) -> None:
    [sentence] = advice(outcome(bundle, good=PLENTY, defective=[]))
    assert sentence.startswith("No known defect was learnt from")
    assert "Bring 20 real ones or more" in sentence


def test_few_known_defects_are_what_to_collect_first(bundle: Bundle) -> None:
    five = [seen("crack", 5.0 + i, i) for i in range(5)]
    kept = tuple(listed("crack", i) for i in range(4))
    [sentence] = advice(outcome(bundle, good=PLENTY, defective=five, spare=kept))
    assert sentence == (
        "5 more defects would help most; sort them into parts/defective/TYPE. "
        "4 of yours were kept for the test; a larger --defects learns from some of them."
    )


def test_few_and_repeated_good_images_are_told(bundle: Bundle) -> None:
    found = outcome(bundle, good=PLENTY, defective=CLEAR, trained_on=20, look_alikes=7)
    dropped = tuple(Dropped(path=f"{i}.png", same_as="a.png") for i in range(6))
    found = replace(found, split=replace(found.split, dropped=dropped))
    few, alike, repeated = advice(found)
    assert few.startswith("Training had 20 good images; 50 or more")
    assert alike.startswith("7 of the 319 good images look like another one.")
    assert repeated.startswith("Left out, since their pixels repeat those of another image: 6 ima")
    assert "4.png and 1 more" in repeated


def test_the_summary_has_every_number(bundle: Bundle) -> None:
    weak = [seen("crack", 1.5), seen("crack", 9.0)]
    assert summary(outcome(bundle, good=[2.0, 1.0], defective=weak)) == (
        "Trained on 60 good and 2 defective images in 4 min. 1 of the 2 defects it learnt is told "
        "apart. That is no test. Next: agent evaluate, then agent calibrate."
    )
    assert "The 10 defects it learnt are told apart. That is no test." in summary(
        outcome(bundle, good=PLENTY, defective=CLEAR)
    )
    low = [seen("crack", 0.5), seen("crack", 0.2)]
    assert "None of the 2 defects it learnt are told apart." in summary(
        outcome(bundle, good=[2.0, 1.0], defective=low)
    )
    assert "nobody can say" in summary(outcome(bundle, good=[1.0], defective=[]))


class Words(HTMLParser):
    """Collects what a page would load, its tags and its words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def written(bundle: Bundle, found: Outcome, source: Source) -> Words:
    path = bundle.path / REPORT
    write_report(path, found, Images(source))
    return Words(path.read_text(encoding="utf-8"))


def test_the_page_stands_alone_and_needs_no_test_image(
    bundle: Bundle, own: Source, split: Split
) -> None:
    for item in split.test:
        own.path(item.path).unlink()
    found = examine(finished(bundle, own, split))
    assert [len(found.good), len(found.defective)] == [6, 4]
    shown = written(bundle, found, own)
    assert len(shown.loads) >= 3 * 10
    assert all(load.startswith("data:image/jpeg;base64,") for load in shown.loads)
    assert not {"script", "link", "iframe"} & set(shown.tags)
    assert shown.tags.count("svg") == 2
    assert shown.tags.count("circle") == len(EPOCHS)
    assert summary(found) in shown.text
    assert all(sentence in shown.text for sentence in advice(found))
    assert "cannot be shown" not in shown.text
    for item in (*split.held_out_good, *split.train_defective):
        assert "/".join(Path(item.path).parts[-2:]) in shown.text


def test_scores_are_those_of_the_line(bundle: Bundle, source: Source, split: Split) -> None:
    found = examine(finished(bundle, source, split))
    for kind in (found.good, found.defective):
        scores = [one.score for one in kind]
        assert scores == sorted(scores, reverse=True)
    assert found.threshold > found.good[0].score
    assert all(one.item.defective for one in found.defective)


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", '"><iframe src=x>'])
def test_names_from_outside_are_text(bundle: Bundle, source: Source, hostile: str) -> None:
    item = Listed(path=f"test/{hostile}/{hostile}.png", sha256="0" * 64, kind=hostile)
    odd = [replace(one, item=item) for one in CLEAR[:2]]
    found = outcome(bundle, good=[7.0, 1.0], defective=odd, spare=(item,))
    record = replace(
        found.record, backbone=hostile, pretrained=hostile, versions={hostile: hostile}
    )
    dropped = (Dropped(path=hostile, same_as=hostile),)
    split = replace(found.split, held_out_good=(), dropped=dropped)
    found = replace(found, record=record, split=split, bundle_id=hostile)
    shown = written(bundle, found, source)
    assert not {"script", "iframe"} & set(shown.tags)
    assert shown.text.count(hostile) >= 9


def test_a_picture_that_cannot_be_drawn_leaves_its_reason(
    bundle: Bundle, own: Source, split: Split
) -> None:
    found = examine(finished(bundle, own, split))
    gone, other = split.train_defective[:2]
    own.path(gone.path).unlink()
    shutil.copy(own.path(split.train_good[0].path), own.path(other.path))
    text = written(bundle, found, own).text
    assert text.count("cannot be shown") == 2
    assert "is not the image that the split lists" in text


def test_the_curve_has_a_point_for_each_epoch(bundle: Bundle, source: Source, split: Split) -> None:
    shown = written(bundle, examine(finished(bundle, source, split)), source)
    assert shown.tags.count("circle") == len(EPOCHS)


def test_good_training_images_never_pass_for_unseen_ones(
    tmp_path: Path, source: Source, split: Split
) -> None:
    none_held = replace(
        split, train_good=(*split.train_good, *split.held_out_good), held_out_good=()
    )
    bundle = bundle_of(tmp_path / "bundle", none_held)
    found = examine(finished(bundle, source, none_held, settings=Paper()))
    assert {one.item.path for one in found.good} == {item.path for item in none_held.train_good}
    text = written(bundle, found, source).text
    assert "No good image was held out, so the good ones on this page are training images" in text
    assert "Held-out good" not in text


def test_without_defects_there_is_no_table(bundle: Bundle, source: Source) -> None:
    shown = written(bundle, outcome(bundle, good=PLENTY, defective=[]), source)
    assert "table" not in shown.tags
    assert "Known defects" not in shown.text


def test_a_page_that_fails_costs_no_bundle(
    bundle: Bundle, own: Source, split: Split, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = finished(bundle, own, split, images=Images(own))
    shutil.rmtree(own.root)
    statement, path, has_promise = _report(ended)
    assert path is None
    assert not has_promise
    assert statement.startswith("Trained on ")
    assert "WARNING: no training.html, but the bundle is complete" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_an_error(bundle: Bundle, source: Source) -> None:
    found = outcome(bundle, good=[1.0], defective=[])
    with pytest.raises(TrainingError, match="cannot be written"):
        write_report(bundle.path / "nowhere" / REPORT, found, Images(source))


@pytest.fixture
def phone() -> Iterator[object]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    driver, browser = shutil.which("chromedriver"), shutil.which("chromium")
    if not (driver and browser):
        pytest.skip("needs Chromium and its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    shown = webdriver.Chrome(options=options, service=Service(driver))
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    yield shown
    shown.quit()


@pytest.mark.browser
def test_a_phone_shows_the_whole_page(bundle: Bundle, source: Source, split: Split, phone) -> None:
    path = bundle.path / REPORT
    write_report(path, examine(finished(bundle, source, split)), Images(source))
    phone.get(path.as_uri())
    assert phone.execute_script("return document.documentElement.scrollWidth") <= 390
    assert phone.execute_script("return [...document.images].every(i => i.naturalWidth)")
    columns = phone.execute_script(
        "return getComputedStyle(document.querySelector('.views')).gridTemplateColumns"
    )
    assert len(re.findall(r"px", columns)) == 2
    wide = phone.execute_script(
        "const label = document.querySelector('.zoom'); label.click();"
        "return label.querySelector('img').getBoundingClientRect().width"
    )
    assert wide == 390, "a picture fills the screen"
    assert phone.get_log("browser") == []
