"""The choice of a product on the screen of a line that makes several."""

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


def test_a_product_that_there_is_not_is_refused_in_words(line):
    operator = line.log_in(Role.OPERATOR)
    answer = line.post("/line/product", {"product": "beer"}, cookie=operator)
    assert (answer.status, "product: write cola or &lt;lemon&gt;" in answer.text) == (409, True)
