"""The choice of a product on the screen of a line that makes several."""

import re

import pytest

from agent.part import State
from agent.services.page.access import Role
from engine.bundle import open_bundle
from tests.agent.services.page.line import Line, until
from tests.agent.services.page.test_browser import texts
from tests.agent.services.page.test_browser_screens import click, enter, write
from tests.calibrations import calibrated
from tests.tiny_bundle import defective_part, tiny_bundle


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    calibrated(tiny_bundle(folder / "water"), 3.0)
    with Line(folder, products=("cola", "<lemon>", "water")) as made:
        yield made


def test_an_operator_has_the_line_make_another_product(line):
    operator, viewer = line.log_in(Role.OPERATOR), line.log_in(Role.VIEWER)
    line.show(0.2)
    until(lambda: "Product <b>cola</b>" in line.get("/line").text)
    assert "Next product" not in line.get("/line", cookie=viewer).text
    assert "<option selected>cola</option>" in line.get("/line", cookie=operator).text
    form = {"product": "<lemon>", "why": "order 17"}
    assert line.post("/line/product", form, cookie=viewer).status == 403
    assert line.post("/line/product", form, cookie=operator).headers["hx-redirect"] == "/line"
    line.show(0.3)
    until(lambda: "Product <b>&lt;lemon&gt;</b>" in line.get("/line").text)
    log = line.get("/system", cookie=line.log_in(Role.ENGINEER)).text
    assert "product: cola → &lt;lemon&gt;" in log
    assert "<td>order 17</td>" in log


def test_what_is_labelled_and_trained_belongs_to_one_product(line):
    """The line makes the second one by now."""
    engineer = line.log_in(Role.ENGINEER)
    line.show(0.9)
    (one,) = re.findall(r'data-id="([^"]+)"', line.get("/review?queue=ng").text)
    form = {"say": f"{one}=defective", "queue": "ng"}
    assert line.post("/review/label", form, cookie=engineer).status == 200
    until(lambda: [one["product"] for one in line.records()] == ["<lemon>"])
    html = line.get("/retrain", cookie=engineer).text
    assert "Of product &lt;lemon&gt;, which the line makes now" in html
    assert line.post("/retrain/rollback", {"why": "w"}, cookie=engineer).status == 200
    why = (
        "product: is missing, as each product has a bundle of its own; "
        "write cola or &lt;lemon&gt; or water"
    )
    until(lambda: why in line.get("/retrain", cookie=engineer).text)
    form = {"why": "worse", "product": "cola"}
    assert line.post("/retrain/rollback", form, cookie=engineer).status == 200
    until(lambda: "there is no bundle here" in line.get("/retrain", cookie=engineer).text)


def test_a_product_that_there_is_not_is_refused_in_words(line):
    operator = line.log_in(Role.OPERATOR)
    answer = line.post("/line/product", {"product": "beer"}, cookie=operator)
    assert (answer.status, "product: write cola or &lt;lemon&gt; or water" in answer.text) == (
        409,
        True,
    )


@pytest.mark.browser
def test_a_trained_bundle_of_a_product_inspects_it_after_two_clicks(line, fresh):
    """While the line makes another one, of which nothing changes."""
    first = open_bundle(line.folder / "water").id
    out = line.folder / "page" / "retrain" / "20260101-000000" / "out"
    second = tiny_bundle(out / "bundle", gain=60.0)
    calibrated(second, 100.0)
    (out / "result.json").write_text(
        f'{{"bundle_id": "{second.id}", "product": "water", "threshold": 100, "proved": true,'
        ' "max_false_reject": 0.05, "counts": {"good": 1, "defective": 2, "calibration": 3}}'
    )
    operator = line.log_in(Role.OPERATOR)

    def show(product, *pixels):
        assert line.post("/line/product", {"product": product}, cookie=operator).status == 200
        line.show(*pixels)

    show("water", defective_part(5))
    show("cola", 0.2)
    enter(fresh, line, "/retrain")
    write(fresh, "why", "learnt 60 labels", within="form[hx-post='/retrain/promote']")
    click(fresh, "Put the new bundle in force")
    until(lambda: "✓ This bundle is in force." in texts(fresh, "b"))
    show("water", defective_part(5))
    show("cola", 0.3)
    told = [(one.product, one.ended.state, one.ended.bundle_id) for one in line.parts[-4:]]
    assert told == [
        ("water", State.NG, first),
        ("cola", State.OK, ""),
        ("water", State.OK, second.id),
        ("cola", State.OK, ""),
    ]
