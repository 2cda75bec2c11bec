"""`agent check`: golden samples, the signed protocol, and what can be found out about it later."""

import json

import pytest
from PIL import Image

from agent.commands.check import check
from agent.golden import protocols
from agent.record.ledger import Ledger
from engine.errors import AtacError, ConfigurationError
from tests.calibrations import calibrated
from tests.tiny_bundle import defective_part, good_part, tiny_bundle


@pytest.fixture
def place(tmp_path):
    """A camera that shows two good parts and then two defective ones."""
    calibrated(tiny_bundle(tmp_path / "bundle"), 3.0)
    (tmp_path / "samples").mkdir()
    for number, pixels in enumerate(
        [good_part(1), good_part(2), defective_part(3), defective_part(4)]
    ):
        Image.fromarray(pixels).save(tmp_path / "samples" / f"{number}.png")
    (tmp_path / "agent.yaml").write_text(
        "agent: {id: test}\nbundle: {path: bundle}\ncamera: {type: folder, path: samples}\n"
        "mqtt: {host: 127.0.0.1, port: 1}\n"
    )
    return tmp_path


def checked(place, **options):
    check(config=place / "agent.yaml", by="Ada", why="start of the shift", **options)


def test_samples_that_are_as_they_should_be_pass(place, capsys):
    checked(place)
    out = capsys.readouterr().out
    assert "passed: 4 of 4 golden samples as they should be" in out
    (kept,) = protocols(place / "checks")
    protocol = kept.protocol
    assert (protocol.who, protocol.why, protocol.camera) == ("Ada", "start of the shift", "main")
    assert [(one.truth, one.state) for one in protocol.samples] == [
        ("good", "OK"), ("good", "OK"), ("defective", "NG"), ("defective", "NG")
    ]  # fmt: skip
    assert all(one.picture for one in protocol.samples)
    assert kept.is_signed
    assert (place / "checks" / "device.key").stat().st_mode & 0o777 == 0o600


def test_a_sample_that_is_not_as_it_should_be_fails_the_check(place, capsys):
    with pytest.raises(SystemExit):
        checked(place, good=3, defective=1, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["passed"] is False
    assert [one["state"] for one in answer["samples"]] == ["OK", "OK", "NG", "NG"]
    (kept,) = protocols(place / "checks")
    assert "FAILED: 3 of 4 golden samples as they should be; sample 3 (good) was NG" in str(
        kept.protocol.statement
    )


def test_what_is_done_to_protocols_is_seen(place, capsys):
    for _ in range(3):
        checked(place, good=1, defective=0)
        next(iter((place / "checks").glob("*.json"))).touch()
    check(config=place / "agent.yaml", shows=True)
    assert "every signature right" in capsys.readouterr().out


@pytest.mark.parametrize("spoil", ["change", "remove"])
def test_a_protocol_that_was_changed_or_taken_out_is_noticed(place, capsys, monkeypatch, spoil):
    seconds = iter(range(1_800_000_000, 1_800_000_900))
    monkeypatch.setattr("agent.commands.check.time.time_ns", lambda: next(seconds) * 10**9)
    for _ in range(3):
        checked(place, good=1, defective=0)
    second = sorted((place / "checks").glob("*.json"))[1]
    if spoil == "change":
        second.write_text(second.read_text().replace('"who": "Ada"', '"who": "Eve"'))
    else:
        second.unlink()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        check(config=place / "agent.yaml", shows=True, as_json=True)
    wrong = json.loads(capsys.readouterr().out)["wrong"]
    assert any("the protocol before it is missing or was changed" in each for each in wrong)
    assert any("signature" in each for each in wrong) is (spoil == "change")


def test_what_cannot_be_checked_is_said(place):
    with pytest.raises(ConfigurationError, match="name one of main"):
        checked(place, camera="side")
    with pytest.raises(ConfigurationError, match="nothing is shown"):
        checked(place, good=0, defective=0)
    with (
        Ledger(place / "ledger.sqlite", agent_id="test"),
        pytest.raises(AtacError, match="the agent runs"),
    ):
        checked(place)
