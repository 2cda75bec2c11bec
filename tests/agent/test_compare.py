"""`agent compare`: what another bundle or threshold would change of what was kept."""

import json

import pytest

from agent.commands.compare import compare
from agent.part import State
from agent.settings import EvidenceSettings
from agent.station.evidence import Evidence
from engine.errors import CalibrationError, ConfigurationError
from engine.frame import Box
from tests.agent.parts import ended
from tests.calibrations import calibrated
from tests.inspections import inspection
from tests.tiny_bundle import defective_part, good_part, tiny_bundle


@pytest.fixture
def place(tmp_path):
    """Frames of two alarms, one of a good part, and of a part without a score."""
    calibrated(tiny_bundle(tmp_path / "bundle"), 0.5)
    calibrated(tiny_bundle(tmp_path / "better", gain=41.0), 3.0)
    (tmp_path / "agent.yaml").write_text(
        "agent: {id: test}\nbundle: {path: bundle}\ncamera: {type: conveyor}\n"
        "mqtt: {host: 127.0.0.1, port: 1}\nevidence: {folder: evidence}\n"
    )
    settings = EvidenceSettings(folder=tmp_path / "evidence")
    for number, state, score, pixels in [
        (1, State.NG, 1.25, good_part(1)),
        (2, State.NG, 5.5, defective_part(2)),
        (3, State.TIMEOUT, None, good_part(3)),
        (4, State.OK, 1.875, defective_part(4)),
    ]:
        found = None if score is None else inspection(score, Box.around(pixels))
        with Evidence(settings, "test", "0123456789ab") as evidence:
            evidence.offer(ended(number, state, inspection=found, pixels=pixels))
    return tmp_path


def compared(place, capsys, **options):
    report = place / "runs" / "comparison.html"
    compare(config=place / "agent.yaml", report=report, as_json=True, **options)
    answer = json.loads(capsys.readouterr().out)
    page = report.read_text()
    assert page.count("<figure>") == len(answer["changed"])
    return answer


def test_another_bundle_judges_the_frames_again(place, capsys):
    answer = compared(place, capsys, bundle=place / "better")
    assert (answer["judged"], answer["unreadable"]) == (3, 0)
    assert [(one["sequence"], one["state"], one["new_state"]) for one in answer["changed"]] == [
        (1, "NG", "OK"),
        (4, "OK", "NG"),
    ]


def test_of_a_line_with_products_only_the_parts_of_one_are_judged(place, capsys):
    config = place / "agent.yaml"
    products = (
        "products: [{name: cola, bundle: {path: bundle}}, {name: l/m, bundle: {path: bundle}}]"
    )
    products = products.replace("l/m", "lemon tea")
    config.write_text(config.read_text().replace("bundle: {path: bundle}", products, 1))
    settings = EvidenceSettings(folder=place / "evidence")
    for number, product in [(5, "cola"), (6, "lemon tea"), (7, "lemon tea")]:
        pixels = good_part(number)
        part = ended(
            number, State.NG, inspection=inspection(1.5, Box.around(pixels)), pixels=pixels
        )
        part.product = product
        with Evidence(settings, "test", "0123456789ab") as evidence:
            evidence.offer(part)
    for asked, sequences in [({}, [5]), ({"product": "lemon tea"}, [6, 7])]:
        answer = compared(place, capsys, threshold=2.0, **asked)
        assert [one["sequence"] for one in answer["changed"]] == sequences
    with pytest.raises(ConfigurationError, match="write cola or lemon tea"):
        compared(place, capsys, threshold=2.0, product="beer")


def test_another_threshold_is_compared_with_the_scores_that_were(place, capsys):
    answer = compared(place, capsys, threshold=1.875)
    assert [(one["sequence"], one["new_state"]) for one in answer["changed"]] == [(1, "OK")]
    compare(config=place / "agent.yaml", report=place / "page.html", threshold=9.0)
    assert "2 of 3 kept parts would have another verdict: 2 NG" in capsys.readouterr().out


def test_what_is_gone_or_unreadable_does_not_count(place, capsys):
    first, second = sorted((place / "evidence").rglob("*_NG_*.jpg"))
    first.unlink()
    second.write_bytes(b"no picture")
    answer = compared(place, capsys, bundle=place / "better")
    assert (answer["judged"], answer["unreadable"]) == (1, 1)


def test_what_cannot_be_compared_is_said(place):
    config = place / "agent.yaml"
    with pytest.raises(ConfigurationError, match="a bundle, or a threshold"):
        compare(config=config)
    tiny_bundle(place / "new", gain=9.0)
    with pytest.raises(CalibrationError, match="there is no calibration yet"):
        compare(config=config, bundle=place / "new")
    (place / "evidence").rename(place / "elsewhere")
    with pytest.raises(ConfigurationError, match="has no frame of the last 7 days"):
        compare(config=config, threshold=1.0)
    config.write_text(config.read_text().replace("evidence:", "#"))
    with pytest.raises(ConfigurationError, match="is not named"):
        compare(config=config, threshold=1.0)
