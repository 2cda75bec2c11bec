"""The engineer's screens on a running line: what they show, what they do, and who may."""

import io
import json
import re
import time
import zipfile
from urllib.parse import quote

import pytest

from agent.commands.report import report
from agent.golden import protocols
from agent.services.page.access import Role
from engine.bundle import open_bundle
from tests.agent.services.page.line import Line, until
from tests.calibrations import calibrated
from tests.tiny_bundle import defective_part, good_part, tiny_bundle

CONFIG = """\
agent: {id: line-3}
bundle: {path: bundle}
camera: {type: conveyor}
mqtt:
  host: 127.0.0.1
  port: 1
  user: <agent>
  # password_file: /run/secret
  # password: "a secret of old"
"""


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """Six good parts and two defective ones have passed."""
    folder = tmp_path_factory.mktemp("line")
    bundle = tiny_bundle(folder / "bundle")
    calibrated(bundle, 3.0, [0.9 + n / 1000 for n in range(100)])
    made = Line(folder, bundle=bundle.path, audit=1.0)
    made.config_file = folder / "agent.yaml"
    made.config_file.write_text(CONFIG)
    with made as running:
        parts = [defective_part(n) if n in {3, 6} else good_part(n) for n in range(8)]
        running.show(*parts, ids=[f"A-{number}" for number in range(8)])
        yield running


@pytest.fixture(scope="module")
def engineer(line):
    return line.log_in(Role.ENGINEER)


@pytest.mark.parametrize(
    ("screen", "least"),
    [("threshold", Role.ENGINEER), ("history", Role.ENGINEER), ("golden", Role.OPERATOR)],
)
def test_each_screen_is_for_its_role(line, screen, least):
    below = line.log_in(Role(least - 1))
    assert line.get(f"/{screen}", cookie=below).status == 403
    assert line.get(f"/{screen}", cookie=line.log_in(least)).status == 200
    assert line.get(f"/{screen}").status == 303


def test_a_threshold_is_tried_before_it_is_set(line, engineer):
    html = line.get("/threshold?threshold=100", cookie=engineer).text
    assert "2 NG parts of the last 7 days would be OK" in html
    assert "0 OK parts of the last 7 days would be NG" in html
    assert "0 of the calibration&#39;s 101 good parts are above it" in html
    html = line.get("/threshold?threshold=0,01", cookie=engineer).text
    assert "6 OK parts of the last 7 days would be NG" in html
    for wrong in ("", "nan", "x", "1e999"):
        assert line.get(f"/threshold?threshold={wrong}", cookie=engineer).status == 200


def test_a_threshold_needs_a_reason_and_goes_on_record(line, engineer):
    no_reason = line.post("/threshold/set", {"threshold": "2.5", "why": " "}, cookie=engineer)
    assert (no_reason.status, "Write the reason" in no_reason.text) == (400, True)
    outside = line.post("/threshold/set", {"threshold": "-5", "why": "x"}, cookie=engineer)
    assert (outside.status, "lies outside the scores" in outside.text) == (409, True)
    operator = line.log_in(Role.OPERATOR)
    form = {"threshold": "2.5", "why": "<b>too many</b>"}
    assert line.post("/threshold/set", form, cookie=operator).status == 403
    assert line.post("/threshold/set", form, cookie=engineer).headers["hx-redirect"] == "/threshold"
    html = line.get("/threshold", cookie=engineer).text
    assert "Use the calibrated 3 again" in html
    back = line.post("/threshold/set", {"back": "yes", "why": "done"}, cookie=engineer)
    assert back.status == 200
    report = line.get("/report", cookie=engineer).text
    assert report.count("<td>engineer</td>") == 2
    assert "&lt;b&gt;too many&lt;/b&gt;" in report


def test_golden_samples_are_the_next_parts_and_leave_a_protocol(line, engineer):
    cookie = line.log_in(Role.OPERATOR)
    assert line.post("/golden/begin", {"camera": "no"}, cookie=cookie).status == 409
    form = {"camera": "main", "why": "shift"}
    assert line.post("/golden/begin", form, cookie=cookie).status == 200
    assert "Show a GOOD sample" in line.get("/golden/status?was=yes", cookie=cookie).text
    for pixels in (good_part(1), good_part(2), defective_part(3)):
        line.cameras["main"].show(pixels)
    until(lambda: "3 of 4" in line.get("/golden/status", cookie=cookie).text)
    assert "Show a DEFECTIVE sample" in line.get("/golden", cookie=cookie).text
    line.cameras["main"].show(defective_part(4))
    until(lambda: protocols(line.config.check.folder))
    until(lambda: "hx-redirect" in line.get("/golden/status?was=yes", cookie=cookie).headers)
    html = line.get("/golden", cookie=cookie).text
    assert "passed: 4 of 4 golden samples" in html
    assert line.get("/golden/picture?n=0&sample=3", cookie=cookie).body[:2] == b"\xff\xd8"
    for wrong in ("n=9&sample=0", "n=0&sample=../x", "n=-1e9", ""):
        assert line.get(f"/golden/picture?{wrong}", cookie=cookie).status == 404
    assert "passed: 4 of 4" in line.get("/report", cookie=engineer).text


def test_a_check_may_be_cancelled(line):
    cookie = line.log_in(Role.OPERATOR)
    assert line.post("/golden/begin", {"camera": "main"}, cookie=cookie).status == 200
    assert line.post("/golden/cancel", cookie=cookie).status == 200
    assert "Begin: the next parts" in line.get("/golden", cookie=cookie).text


def test_a_report_is_a_screen_a_table_and_a_page_to_keep(line, engineer):
    day = time.strftime("%Y-%m-%d")
    table = line.get(f"/report/table?from={day}", cookie=engineer)
    assert table.headers["content-disposition"].endswith(f'line-3_{day}.csv"')
    assert sum(int(row.split(",")[2]) for row in table.text.splitlines()[1:]) >= 6
    shown = line.get("/report", cookie=engineer).text
    assert "Where NG parts of main were inspected closer" in shown
    page = line.get(f"/report/file?from={quote(day + ' 00:00')}&to={day}", cookie=engineer)
    assert page.headers["content-type"].startswith("text/html")
    assert page.text.count("data:image/jpeg") >= 2
    for wrong in ("from=yesterday", f"from={day}&to=2001-01-01", "from=0001-01-01"):
        assert line.get(f"/report?{wrong}", cookie=engineer).status in {200, 400}


def test_a_report_from_a_terminal_has_the_figures_of_the_page(line, tmp_path, capsys):
    config = line.folder / "agent.yaml"
    config.write_text(CONFIG + "page: {listen: '127.0.0.1:1'}\n")
    report(config=config, html=tmp_path / "report.html", as_json=True)
    config.write_text(CONFIG)
    assert json.loads(capsys.readouterr().out)["cameras"]["main"]["OK"] >= 6


def test_history_says_how_the_line_stands_to_its_calibration(line, engineer):
    html = line.get("/history?span=week&camera=main", cookie=engineer).text
    assert re.search(r"\d+ OK parts of this run were compared", html)
    assert "No good part of the audit is labelled yet" in html
    assert "59 labelled good parts of the audit would be as many" in html
    parts = re.findall(r'data-id="([0-9a-f]{12}/\d+)"', line.get("/review?queue=audit").text)
    say = " ".join(f"{each}=good" for each in parts)
    form = {"say": say, "queue": "audit"}
    assert line.post("/review/label", form, cookie=engineer).status == 200
    html = line.get("/history", cookie=engineer).text
    assert re.search(r"\d+ of \d+ good parts were above the calibrated threshold", html)
    assert line.get("/history?span=x&camera=%3Cscript%3E", cookie=engineer).status == 200


def test_the_system_shows_the_configuration_and_what_doctor_says(line, engineer):
    html = line.get("/system", cookie=engineer).text
    assert "user: &lt;agent&gt;" in html
    assert "password_file: /run/secret" in html
    assert "a secret of old" not in html
    assert "Add, or change password" not in html  # for administrators
    line.config_file.write_text(CONFIG.replace("port: 1", "port: many"))
    told = examined(line, engineer)
    assert re.search(r'class="finding fail"><b>✕ configuration</b> [^<]*line 6', told)
    assert '<code class="wrong">  port: many</code>' in told
    line.config_file.write_text(CONFIG)


def examined(line, cookie):
    assert "is being examined" in line.post("/system/doctor", cookie=cookie).text
    told = []
    until(
        lambda: (
            "is being examined"
            not in (told.append(line.get("/system/found", cookie=cookie).text) or told[-1])
        )
    )
    return told[-1]


def test_users_are_added_and_removed_by_an_administrator_and_it_is_logged(line, engineer):
    admin = line.log_in(Role.ADMIN)
    form = {"name": "<new>", "password": "a long password", "role": "OPERATOR"}
    assert line.post("/system/add-user", form, cookie=engineer).status == 403
    assert line.post("/system/add-user", form | {"password": "short"}, cookie=admin).status == 400
    assert line.post("/system/add-user", form | {"role": "GOD"}, cookie=admin).status == 400
    assert line.post("/system/add-user", form, cookie=admin).status == 200
    assert "<td>&lt;new&gt;</td><td>operator</td>" in line.get("/system", cookie=admin).text
    assert line.post("/system/remove-user", {"name": "admin"}, cookie=admin).status == 400
    assert line.post("/system/remove-user", {"name": "<new>"}, cookie=admin).status == 200
    html = line.get("/system", cookie=admin).text
    assert "<td>&lt;new&gt;</td><td>operator</td>" not in html
    assert "<td>remove user</td><td>&lt;new&gt;</td>" in html


def test_the_support_archive_has_no_secret(line, engineer):
    assert line.get("/system/archive", cookie=engineer).status == 403
    answer = line.get("/system/archive", cookie=line.log_in(Role.ADMIN))
    with zipfile.ZipFile(io.BytesIO(answer.body)) as packed:
        content = {name: packed.read(name).decode() for name in packed.namelist()}
    assert {*content} == {
        "agent.yaml", "versions.txt", "status.json", "doctor.json", "drift.json", "log.json",
        "days.json",
    }  # fmt: skip
    assert json.loads(content["status.json"])["agent_id"] == "line-3"
    assert all("a secret of old" not in text for text in content.values())


def test_a_trained_bundle_is_put_in_force_and_taken_back(line, engineer):
    first = open_bundle(line.bundle).id
    out = line.folder / "page" / "retrain" / "20260101-000000" / "out"
    second = tiny_bundle(out / "bundle", gain=60.0)
    calibrated(second, 4.0)
    result = {
        "bundle_id": second.id, "threshold": 4.0, "max_false_reject": 0.05, "proved": True,
        "counts": {"good": 1, "defective": 2, "calibration": 3},
    }  # fmt: skip
    (out / "result.json").write_text(json.dumps(result))
    (out / "comparison.html").write_text("<p>pictures")
    epochs = [
        {"number": 1, "of": 4, "loss": 2.0, "separation": None},
        {"number": 2, "of": 4, "loss": 1.25, "separation": 0.875},
    ]
    (out / "curve.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in epochs) + '{"num')
    html = line.get("/retrain", cookie=engineer).text
    assert "Learnt from 1 good and 2 defective images" in html
    assert "Epoch 2 of 4: loss 1.25" in html
    assert '<polyline points="8.0,8.0 202.7,62.0 "' in html
    assert html.count('width="8" height="8"') == 2
    assert "0.875 after epoch 2" in html
    assert line.get("/retrain/page?page=comparison.html", cookie=engineer).text == "<p>pictures"
    for wrong in ("../job.json", "result.json", ""):
        assert line.get(f"/retrain/page?page={wrong}", cookie=engineer).status == 404
    assert line.post("/retrain/promote", {"why": ""}, cookie=engineer).status == 400
    assert line.post("/retrain/promote", {"why": "better"}, cookie=engineer).status == 200
    until(lambda: "hx-redirect" in line.get("/retrain/job", cookie=engineer).headers)
    until(lambda: "This bundle is in force" in line.get("/retrain", cookie=engineer).text)
    assert open_bundle(line.bundle).id == second.id
    assert line.post("/retrain/rollback", {"why": "worse"}, cookie=engineer).status == 200
    until(lambda: "hx-redirect" in line.get("/retrain/job", cookie=engineer).headers)
    until(lambda: open_bundle(line.bundle).id == first)
    report = line.get("/report", cookie=engineer).text
    assert "<td>new bundle</td>" in report
    assert "<td>old bundle back</td>" in report


def test_training_begins_only_while_the_line_stands_and_says_why_it_failed(line, engineer):
    assert line.post("/retrain/begin", cookie=engineer).status == 409
    assert line.post("/retrain/pause", {"pause": "yes"}, cookie=engineer).status == 200
    until(lambda: "Let the line inspect again" in line.get("/retrain", cookie=engineer).text)
    line.config_file.write_text("agent: {}\n")
    assert line.post("/retrain/begin", cookie=engineer).status == 200
    until(lambda: "hx-redirect" in line.get("/retrain/job", cookie=engineer).headers)
    html = line.get("/retrain", cookie=engineer).text
    assert "It has not come to its end" in html
    assert "agent.id: is missing" in html
    line.config_file.write_text(CONFIG)
    assert line.post("/retrain/pause", {"pause": "no"}, cookie=engineer).status == 200
