"""The choice of a product on the screen of a line that makes several."""

import re

import pytest

from agent.services.page.access import Role
from tests.agent.services.page.line import Line, until


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    with Line(tmp_path_factory.mktemp("line"), products=("cola", "<lemon>")) as made:
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
        "product: is missing, as each product has a bundle of its own; write cola or &lt;lemon&gt;"
    )
    until(lambda: why in line.get("/retrain", cookie=engineer).text)
    form = {"why": "worse", "product": "cola"}
    assert line.post("/retrain/rollback", form, cookie=engineer).status == 200
    until(lambda: "there is no bundle here" in line.get("/retrain", cookie=engineer).text)


def test_a_product_that_there_is_not_is_refused_in_words(line):
    operator = line.log_in(Role.OPERATOR)
    answer = line.post("/line/product", {"product": "beer"}, cookie=operator)
    assert (answer.status, "product: write cola or &lt;lemon&gt;" in answer.text) == (409, True)
