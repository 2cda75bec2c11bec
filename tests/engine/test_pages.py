from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.pages.charts import Curve, bins, counts, curves_svg, histogram_svg
from engine.pages.rendering import plain_page
from engine.pages.text import counted, listed, percent, short

SCORES = st.lists(st.floats(-1e9, 1e9), max_size=40)


@given(values=SCORES, threshold=st.floats(-1e9, 1e9), about=st.integers(1, 60))
def test_no_value_is_lost_between_bins(values: list[float], threshold: float, about: int) -> None:
    edges = bins(values, threshold, about=about)
    assert edges == sorted(set(edges))
    assert threshold in edges[1:-1]
    found = counts(values, edges)
    assert len(found) == len(edges) - 1
    assert sum(found) == len(values)
    # The verdict's own cut: the threshold itself still passes.
    assert sum(found[edges.index(threshold) :]) == sum(value > threshold for value in values)


def test_bins_are_about_as_many_as_asked_for() -> None:
    assert len(bins([0.0, 10.0], 3.0, about=10)) - 1 in {10, 11, 12}


@given(good=SCORES.filter(len), defective=SCORES, threshold=st.floats(-1e9, 1e9))
def test_every_histogram_is_xml_inside_its_frame(
    good: list[float], defective: list[float], threshold: float
) -> None:
    svg = ET.fromstring(histogram_svg(good, defective, threshold))
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    for bar in svg.iter("rect"):
        left, top = float(bar.attrib["x"]), float(bar.attrib["y"])
        assert 0 <= left <= left + float(bar.attrib["width"]) <= width
        assert 0 <= top <= top + float(bar.attrib["height"]) <= height


@given(
    good=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30),
    defective=st.lists(st.floats(1e-6, 1e6), max_size=30),
    threshold=st.floats(1e-6, 1e6),
)
def test_a_logarithmic_histogram_says_scores_and_not_logarithms(
    good: list[float], defective: list[float], threshold: float
) -> None:
    svg = ET.fromstring(histogram_svg(good, defective, threshold, logarithmic=True))
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    highest = max([*good, *defective, threshold])
    for bar in svg.iter("rect"):
        assert 0 <= float(bar.attrib["x"]) <= width
        assert 0 <= float(bar.attrib["y"]) <= height
        low, _, _ = bar[0].text.rpartition("score ")[2].partition(" to ")
        assert float(low) <= highest * 1.001


def test_mistakes_have_their_own_colour() -> None:
    svg = ET.fromstring(histogram_svg([1, 1, 1, 5], [0.5, 6, 7], 2.0))
    bars = sorted((bar[0].text.split(",")[0], bar.attrib["fill"]) for bar in svg.iter("rect"))
    assert bars == [
        ("1 defective", "var(--defective)"),
        ("1 defective", "var(--defective)"),
        ("1 defective", "var(--wrong)"),
        ("1 good", "var(--wrong)"),
        ("3 good", "var(--good)"),
    ]


def test_what_was_learnt_from_has_a_row_of_its_own() -> None:
    svg = ET.fromstring(histogram_svg([1, 1], [3], 2.0, learnt=[4, 0.5]))
    bars = {(bar[0].text.split(", score")[0], bar.attrib["fill"]) for bar in svg.iter("rect")}
    assert bars == {
        ("2 good", "var(--good)"),
        ("1 defective", "var(--defective)"),
        ("1 defective, learnt from", "var(--defective)"),
        ("1 defective, learnt from", "var(--wrong)"),
    }


POINTS = st.lists(st.tuples(st.floats(0, 30), st.floats(0, 1e9)), max_size=40)


@given(points=POINTS, end=st.integers(1, 500), mark=st.floats(0, 1))
def test_all_curves_are_xml_inside_their_frame(
    points: list[tuple[float, float]], end: int, mark: float
) -> None:
    inside = [(min(x, end), y) for x, y in sorted(points)]
    svg = ET.fromstring(
        curves_svg(
            [Curve(label="a & b", points=inside, dots=True), Curve(label="rate", points=inside)],
            end=float(end),
            axis="epoch",
            mark=(mark * end, "here <"),
        )
    )
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    first, second = svg.iter("polyline")
    for line in (first, second):
        for place in line.attrib["points"].split():
            x, y = map(float, place.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
    assert len(list(svg.iter("circle"))) == len(points)
    words = [text.text for text in svg.iter("text")]
    assert {"a & b", "rate", "here <", "epoch"} <= set(words)


def test_a_curve_begins_and_ends_where_its_axes_do() -> None:
    curve = Curve(label="loss", points=[(0.0, 8.0), (4.0, 0.0)])
    svg = ET.fromstring(curves_svg([curve], end=4.0, axis="epoch"))
    [line] = svg.iter("polyline")
    (left, top), (right, base) = (
        tuple(map(float, place.split(","))) for place in line.attrib["points"].split()
    )
    frame = [rule.attrib for rule in svg.iter("line")][:2]
    assert [float(rule["y1"]) for rule in frame] == [top, base]
    assert [float(frame[1][end]) for end in ("x1", "x2")] == [left, right]
    ticks = [text.text for text in svg.iter("text") if text.attrib["text-anchor"] == "middle"]
    assert ticks == ["0", "1", "2", "3", "4", "epoch"]


@pytest.mark.parametrize("title", ["plain", "<script>alert('x')</script>", 'a & "b"'])
def test_a_page_is_whole_and_its_title_is_text(title: str) -> None:
    html = plain_page(title, "<p>body</p>").decode()
    assert html.startswith("<!doctype html>")
    assert "<script" not in html
    assert "<p>body</p>" in html
    assert 'name="viewport"' in html


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.01, "1 %"), (0.07, "7 %"), (0.001, "0.1 %"), (0.9995, "99.95 %"), (1.0, "100 %")],
)
def test_rates_are_written_as_percentages(rate: float, text: str) -> None:
    assert percent(rate) == text


def test_names_are_short_and_the_others_are_counted() -> None:
    assert counted(1, "picture") == "1 picture"
    assert counted(0, "picture") == "0 pictures"
    assert listed(list("abc")) == "a, b, c"
    assert listed(list("abcdefg")) == "a, b, c, d, e and 2 more"
    assert short("some/where/good/1.png") == "good/1.png"
