"""Kinds: found in their package or added by an installed one; what is broken names its package."""

import json
import sys
from typing import Annotated

import pytest
from pydantic import TypeAdapter, ValidationError

from engine import registry
from engine.errors import KindError
from engine.registry import Kinds
from engine.spec import spec


@spec
class AnyLamp:
    """What all lamps have."""

    watts: float = 5.0


KIND = """
from typing import Literal
from tests.engine.test_registry import AnyLamp
from engine.spec import spec

@spec
class {title}Settings(AnyLamp):
    type: Literal["{name}"] = "{name}"
    colour: str

def open(settings):
    return (settings.type, settings.colour)
"""


@pytest.fixture
def lamps(tmp_path, monkeypatch):
    """A package `lamps_here` with two kinds and a module that is none; and a way to install."""
    sys.modules["tests.engine.test_registry"] = sys.modules[AnyLamp.__module__]
    package = tmp_path / "lamps_here"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "desk.py").write_text(KIND.format(title="Desk", name="desk"))
    (package / "floor.py").write_text(KIND.format(title="Floor", name="floor"))
    (package / "bulb.py").write_text("SOCKET = 'E27'\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry._installed.cache_clear()

    def install(package: str, name: str, text: str) -> None:
        (tmp_path / f"{package}.py").write_text(text)
        info = tmp_path / f"{package}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[atac_agent.lamps_here]\n{name} = {package}\n")
        registry._installed.cache_clear()

    yield Kinds("lamps_here", AnyLamp, noun="lamp"), install
    for name in [each for each in sys.modules if each.startswith(("lamps_here", "wall"))]:
        del sys.modules[name]
    registry._installed.cache_clear()


def test_a_kind_is_a_module_of_the_package_and_only_the_one_asked_for_is_imported(lamps):
    kinds, _ = lamps
    kind = kinds.find("desk")
    assert kind.open(kind.settings(colour="red")) == ("desk", "red")
    assert kinds.of(kind.settings(colour="red")) is kind
    assert "lamps_here.floor" not in sys.modules
    assert kinds.names() == ("desk", "floor")


@pytest.mark.parametrize("name", ["bulb", "ceiling", "", "..os", "desk.py", "Desk", "__init__"])
def test_what_is_no_kind_is_refused_and_the_kinds_are_named(lamps, name):
    with pytest.raises(KindError, match=r"^write desk or floor$"):
        lamps[0].find(name)


def test_an_installed_package_adds_a_kind(lamps):
    kinds, install = lamps
    install("wall_lamps", "wall", KIND.format(title="Wall", name="wall"))
    kind = kinds.find("wall")
    assert kind.open(kind.settings(colour="blue")) == ("wall", "blue")
    assert kinds.names() == ("desk", "floor", "wall")
    assert kinds.added() == {"wall": "lamp wall of wall_lamps"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("1 / 0", "ZeroDivisionError"),
        ("", r"wall_lamps should export one settings class with type: Literal\['wall'\]"),
        (KIND.format(title="W", name="wal"), "should export one settings class"),
        (KIND.format(title="W", name="wall").replace("(AnyLamp)", ""), "derive from .*AnyLamp"),
        (KIND.format(title="W", name="wall").replace("def open", "def opened"), "export open"),
    ],
)
def test_a_package_that_is_broken_is_named(lamps, text, said):
    kinds, install = lamps
    install("wall_lamps", "wall", text)
    with pytest.raises(
        KindError, match=f"the package wall_lamps adds a lamp of type 'wall'.*{said}"
    ):
        kinds.find("wall")


def test_packages_that_clash_are_named(lamps):
    kinds, install = lamps
    install("wall_lamps", "wall", KIND.format(title="W", name="wall"))
    install("wall_more", "wall", KIND.format(title="W", name="wall"))
    with pytest.raises(KindError, match="the packages wall_lamps and wall_more all add a lamp"):
        kinds.find("wall")
    install("wall_desk", "desk", KIND.format(title="W", name="desk"))
    with pytest.raises(KindError, match="the package wall_desk adds a lamp of type 'desk', which"):
        kinds.find("desk")
    with pytest.raises(KindError, match=r"adds a lamp of type 'desk'|all add a lamp"):
        kinds.added()


def test_pydantic_reads_any_kind_by_its_type_and_says_where_something_is_wrong(lamps):
    kinds, _ = lamps
    read = TypeAdapter(tuple[Annotated[AnyLamp, kinds], ...])
    text = json.dumps([{"type": "desk", "colour": "red"}, {"type": "floor", "colour": "blue"}])
    found = read.validate_json(text)
    assert [kinds.of(each).name for each in found] == ["desk", "floor"]
    assert read.validate_json(read.dump_json(found)) == found
    for wrong, place, kind in [
        ({"type": "desk"}, (0, "colour"), "missing"),
        ({"type": "desk", "colour": "red", "watts": "5"}, (0, "watts"), "float_type"),
        ({"type": "ceiling"}, (0,), "kind"),
        ({"type": ["desk"]}, (0,), "string_type"),
        ({"colour": "red"}, (0,), "union_tag_not_found"),
        ("desk", (0,), "dict_type"),
    ]:
        with pytest.raises(ValidationError) as caught:
            read.validate_json(json.dumps([wrong]))
        (error,) = caught.value.errors()
        assert (error["loc"], error["type"]) == (place, kind)
