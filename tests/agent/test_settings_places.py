"""Outputs inside inputs, and inputs inside each other, by whatever name: refused at the start."""

import os
import threading

import pytest

from agent.settings import load_config
from engine.errors import ConfigurationError

HEAD = "agent: {id: line-3}\nbundle: {path: model}\nmqtt: {host: localhost}\n"
IN = "camera: {type: folder, path: in, after_last: watch}\n"


def loaded(folder, text):
    path = folder / "agent.yaml"
    path.write_text(HEAD + text)
    return load_config(path)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "to_in").symlink_to("in")
    (tmp_path / "out" / "to_deep").symlink_to(tmp_path / "in" / "deep")
    (tmp_path / "out" / "up").symlink_to("..")
    return tmp_path


@pytest.mark.parametrize("where", ["in", "in/new/deeper", "out/../in/x", "to_in", "out/to_deep/x"])
@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("evidence: {folder: PLACE}\n", "evidence.folder"),
        ("ledger: {path: PLACE/ledger.sqlite}\n", "ledger.path"),
    ],
)
def test_what_the_agent_writes_below_a_watched_folder_is_refused_by_name(place, text, key, where):
    with pytest.raises(ConfigurationError) as caught:
        loaded(place, IN + text.replace("PLACE", where))
    assert str(caught.value).startswith(f"{key}: ")
    assert "whose files are the parts of camera main; name a place outside it" in str(caught.value)


def test_a_folder_for_done_files_is_one_of_them(place):
    move = "camera: {type: folder, path: in, after_last: watch, done: move, done_folder: to_in/d}\n"
    with pytest.raises(ConfigurationError, match=r"camera\.done_folder: .*lies below"):
        loaded(place, move)


@pytest.mark.parametrize(
    "paths",
    [
        *[("in", "in"), ("in", "in/deep"), ("in/deep", "in"), ("in", "to_in"), ("in", "in/new")],
        *[("out/to_deep", "in"), ("in/deep", "out/up/in")],
    ],
)
def test_two_cameras_that_show_the_same_files_are_refused(place, paths):
    first, second = paths
    with pytest.raises(ConfigurationError, match=r"cameras\.1\.path: .*would be seen twice"):
        loaded(
            place,
            f"cameras:\n  - {{name: a, type: folder, path: {first}}}\n"
            f"  - {{name: b, type: folder, path: {second}}}\n",
        )


def test_neighbours_are_fine(place):
    loaded(place, IN + "evidence: {folder: inside}\nledger: {path: out/ledger.sqlite}\n")
    loaded(
        place,
        "cameras:\n  - {name: a, type: folder, path: in}\n  - {name: b, type: folder, path: in2}\n",
    )


def test_a_share_that_hangs_does_not_hold_up_the_reading(place, monkeypatch):
    hang, found = threading.Event(), os.path.realpath
    monkeypatch.setattr("agent.settings_places._PATIENCE_S", 0.05)
    monkeypatch.setattr(os.path, "realpath", lambda path, **_: hang.wait(60) and found(path))
    loaded(place, IN)
    with pytest.raises(ConfigurationError, match="lies below"):
        loaded(place, IN + "evidence: {folder: in/evidence}\n")
    hang.set()
