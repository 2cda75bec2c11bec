"""The file of regions: what it names, what is drawn, and one clear line for what cannot be."""

import numpy as np
import pytest
from PIL import Image

from agent.regions_file import read_regions
from engine.errors import ConfigurationError
from engine.region import Regions

FILE = """
frame: [120, 80]
regions:
  - name: cap
    crop: [10, 10, 60, 50]
    rotate: 2.5
    ignore:
      - [[20, 20], [30, 20], [25, 30]]
  - {name: label, crop: [70, 10, 110, 70], ignore_image: drawn.png}
find:
  - {edge: left, band: [0, 20, 40, 60], at: 12, contrast: 30}
"""


@pytest.fixture
def file(tmp_path):
    drawn = np.zeros((80, 120), np.uint8)
    drawn[20:40, 80:90] = 255
    drawn[30, 85:100] = 255
    drawn[25:28, 83:86] = 0
    Image.fromarray(drawn).save(tmp_path / "drawn.png")
    (tmp_path / "regions.yaml").write_text(FILE)
    return tmp_path / "regions.yaml"


def test_a_drawn_image_is_ignored_to_the_pixel(file):
    spec = read_regions(file)
    assert [(region.name, region.rotate) for region in spec.regions] == [("cap", 2.5), ("label", 0)]
    assert spec.find[0].at == 12
    drawn = np.asarray(Image.open(file.parent / "drawn.png")) > 0
    frame = np.full((80, 120), 200, np.uint8)
    frame[:, :12] = 20
    _, label = Regions(spec).cut(frame)
    assert np.array_equal(label.ignored, drawn[10:70, 70:110])


OUTLINE = "outline: {within: [5, 5, 115, 75], drawn_on: part.png"


@pytest.fixture
def outlined(file):
    part = np.full((80, 120), 200, np.uint8)
    part[25:45, 20:70] = 120
    Image.fromarray(part).save(file.parent / "part.png")
    file.write_text(FILE.partition("find:")[0] + OUTLINE + ", most_degrees: 10}\n")
    return file


def test_an_outline_is_measured_on_the_image_in_which_regions_were_drawn(outlined):
    spec = read_regions(outlined).outline
    assert spec.at == pytest.approx((45, 35))
    assert spec.size == pytest.approx((50, 20), abs=2)
    assert (round(spec.angle), spec.most_degrees) == (0, 10)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("part.png", "nothing.png", r"outline\.drawn_on.*nothing.png"),
        ("drawn_on: part.png", "drawn_on: part.png, contrast: 100", "not found: nothing in"),
        ("[5, 5, 115, 75]", "[5, 5, 60, 75]", "reaches beyond the window"),
        ("[5, 5, 115, 75]", "[5, 5, 125, 75]", r"outline\.within.*in the frame"),
        ("most_degrees: 10", "most_degree: 10", "did you mean most_degrees"),
        ("drawn_on: part.png, ", "", r"outline\.drawn_on.*is missing"),
        (
            "outline: ",
            "find: [{edge: left, band: [0, 20, 40, 60], at: 12}]\noutline: ",
            "remove one",
        ),
    ],
)
def test_an_outline_that_cannot_be_is_refused_in_one_line(outlined, old, new, said):
    outlined.write_text(outlined.read_text().replace(old, new))
    with pytest.raises(ConfigurationError, match=said):
        read_regions(outlined)


def test_a_round_part_has_no_direction(outlined):
    part = np.full((80, 120), 200, np.uint8)
    part[25:45, 30:51] = 90
    Image.fromarray(part).save(outlined.parent / "part.png")
    with pytest.raises(ConfigurationError, match="too round to have a direction; write turns: fal"):
        read_regions(outlined)
    outlined.write_text(outlined.read_text().replace("10}", "10, turns: false}"))
    assert not read_regions(outlined).outline.turns


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[10, 10, 60, 50]", "[10, 10, 160, 50]", r"regions: .*cap reaches beyond the frame"),
        ("name: label", "name: cap", "two regions are called cap"),
        ("rotate: 2.5", "rotat: 2.5", r"regions.0.rotat.*line 6"),
        ("frame: [120, 80]", "", "frame.*is missing"),
        ("drawn.png", "nothing.png", r"regions.1.ignore_image.*nothing.png"),
        ("frame: [120, 80]", "frame: [121, 80]", "has 120 × 80 pixels"),
        ("at: 12", "at: 50", "at should lie in the band, 0 to 40"),
        ("edge: left", "edge: middle", "find.0.edge"),
        ("regions:", "regions: 3\nothers:", "others"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(file, old, new, said):
    file.write_text(FILE.replace(old, new, 1))
    with pytest.raises(ConfigurationError, match=said) as refused:
        read_regions(file)
    assert "\n" not in str(refused.value)


def test_there_may_be_no_file_or_no_region(file):
    with pytest.raises(ConfigurationError, match="--regions"):
        read_regions(file.with_name("other.yaml"))
    file.write_text("frame: [120, 80]\nregions: []\n")
    with pytest.raises(ConfigurationError, match="names no region"):
        read_regions(file)
