"""Labels: who, when, in which role, from which queue; nothing is lost and nothing overwritten."""

import re

import pytest

from agent.services.page.access import Role
from tests.agent.services.page.line import Line, until


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    with Line(tmp_path_factory.mktemp("line"), audit=1.0) as running:
        running.show(0.9, 0.48, 0.1, 0.8, ids=["bad-1", "nearly-2", "fine-3", "bad-4"])
        yield running


def ids(html):
    return re.findall(r'data-id="([0-9a-f]{12}/\d+)"', html)


def names(html):
    return re.findall(r'class="id" title="([^"]*)"', html)


def part(line, name):
    (found,) = ids(line.get(f"/review?part_id={name}").text)
    return found


def label(line, what, *parts, role=Role.OPERATOR, queue="ng"):
    form = {"say": " ".join(f"{one}={what}" for one in parts), "queue": queue}
    return line.post("/review/label", form, cookie=line.log_in(role))


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("", ["bad-4", "bad-1"]),
        ("queue=doubtful", ["nearly-2"]),
        ("queue=audit", ["bad-4", "fine-3", "nearly-2", "bad-1"]),
        ("queue=", ["bad-4", "fine-3", "nearly-2", "bad-1"]),
        ("queue=&label=&state=OK", ["fine-3", "nearly-2"]),
        ("queue=&score_from=0.4&score_to=0,85", ["bad-4", "nearly-2"]),
        ("part_id=fine-3", ["fine-3"]),
        ("queue=&camera=side", []),
        ("queue=&from=2099-01-01T00:00", []),
        ("queue=&to=2099-01-01T00:00", ["bad-4", "fine-3", "nearly-2", "bad-1"]),
        ("queue=%00&label=';--&before=x&score_from=nan", []),
    ],
)
def test_parts_are_found(line, query, shown):
    assert names(line.get(f"/review?{query}").text) == shown


def test_the_audit_is_judged_without_the_verdict(line):
    audit = line.get("/review?queue=audit").text
    assert 'class="state' not in audit
    assert "/picture/bare_tile/" in audit
    (one,) = [each for each in ids(audit) if each == part(line, "fine-3")]
    assert 'class="state' not in line.get(f"/review/part?id={one}&blind=1").text


def test_a_label_has_all_that_is_to_be_known_and_its_frame_is_kept(line):
    one = part(line, "bad-1")
    until(lambda: line.get(f"/picture/bare/{one}.jpg").status == 200)
    assert label(line, "good", one).status == 200
    (record,) = [each for each in line.records() if each["part_id"] == "bad-1"]
    assert {name: record[name] for name in ("label", "who", "role", "queue", "state", "audit")} == {
        "label": "good",
        "who": "operator",
        "role": "operator",
        "queue": "ng",
        "state": "NG",
        "audit": 1.0,
    }
    kept = line.folder / "page" / "labelled" / record["file"]
    (original,) = line.folder.glob("evidence/*/main/*bad-1*.jpg")
    assert kept.read_bytes() == original.read_bytes()
    assert "bad-1" not in names(line.get("/review?queue=ng").text)
    assert names(line.get("/review?queue=ng&label=good").text) == ["bad-1"]


def test_two_people_may_differ_and_the_later_word_counts(line):
    one = part(line, "bad-4")
    label(line, "good", one)
    label(line, "defective", one, role=Role.ENGINEER, queue="audit")
    said = [
        (each["who"], each["label"], each["queue"])
        for each in line.records()
        if each["part_id"] == "bad-4"
    ]
    assert said == [("operator", "good", "ng"), ("engineer", "defective", "audit")]
    shown = line.get(f"/review/part?id={one}").text
    assert shown.count("<li>") == 2
    label(line, "withdrawn", one)
    assert one in ids(line.get("/review?queue=ng").text)


def test_a_defect_has_a_kind_and_the_report_counts_kinds(line):
    one = part(line, "bad-4")
    form = {"say": f"{one}=defective", "queue": "ng", "kind": "  <b>deep   scratch "}
    assert line.post("/review/label", form, cookie=line.log_in(Role.OPERATOR)).status == 200
    (*_, record) = [each for each in line.records() if each["part_id"] == "bad-4"]
    assert (record["label"], record["kind"]) == ("defective", "<b>deep scratch")
    assert one in ids(line.get("/review?queue=ng&label=defective").text)
    assert "(&lt;b&gt;deep scratch)" in line.get(f"/review/part?id={one}").text
    assert (
        '<option value="&lt;b&gt;deep scratch">'
        in line.get("/review?queue=ng&label=", cookie=line.log_in(Role.OPERATOR)).text
    )
    shown = line.get("/report").text
    assert '<th scope="row">defective: &lt;b&gt;deep scratch</th><td>1</td>' in shown
    assert "defective: &lt;b&gt;deep scratch" in line.get("/report/file").text


@pytest.mark.parametrize(
    ("role", "say", "status"),
    [
        (Role.VIEWER, "good", 403),
        (Role.OPERATOR, "wonderful", 400),
        (Role.OPERATOR, "", 400),
    ],
)
def test_what_is_no_label_and_who_may_not(line, role, say, status):
    before = len(line.records())
    assert label(line, say, part(line, "fine-3"), role=role).status == status
    assert line.post("/review/label", {"say": f"{part(line, 'fine-3')}=good"}).status == 401
    assert len(line.records()) == before


def test_a_part_that_has_gone_is_said_to_be_gone(line):
    told = label(line, "good", f"{'f' * 12}/7")
    assert told.status == 200
    assert "1 part could not be labelled: id: is not in the ledger" in told.text


def test_a_label_that_came_over_mqtt_counts_too(line):
    one = part(line, "nearly-2")
    requests = line.page._watched.requests
    requests.label("line-3:" + one.replace("/", ":"), "defective")
    until(lambda: one in ids(line.get("/review?queue=doubtful&label=defective").text))
    assert any(each["part_id"] == "nearly-2" and each["who"] == "" for each in line.records())
