"""A part is found by its outline: by how much photographed parts that were moved are missed."""

import json
import math
import os
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.part_finding import FRAME, laid, missed, photographs, somewhere, spec_of
from engine.errors import InspectionError
from engine.frame import Box, FoundRegion
from engine.outline import motion, outline
from engine.picture import boxed
from engine.region import Regions
from engine.region_spec import OutlineSpec, RegionSpec, RegionsSpec, moved
from tests.inspections import inspection

DATA = Path(os.environ.get("ATAC_DATA", "../shared/data"))


def photographed(name, count):
    if not (DATA / name).is_dir():
        pytest.skip(f"needs the images of {name} below ATAC_DATA")
    return photographs(DATA / name, count)


@pytest.mark.parametrize(
    ("name", "degrees", "within_px"), [("mvtec_pill", 25.0, 0.8), ("mvtec_bottle", 0.0, 0.8)]
)
def test_photographed_parts_are_found_where_they_were_moved_to(name, degrees, within_px):
    """More of them: `benchmarks/results/part_finding.json`."""
    rng = np.random.default_rng(1)
    for pixels in photographed(name, 4):
        spec = spec_of(pixels, turns=degrees > 0)
        for _ in range(3):
            truth = somewhere(rng, degrees)
            assert missed(motion(laid(pixels, truth), spec), truth) < within_px


def test_the_crop_shows_the_same_pixels_wherever_the_part_lies():
    (pixels,) = photographed("mvtec_pill", 1)
    region = RegionSpec(name="print", crop=(330, 330, 490, 480))
    regions = Regions(
        RegionsSpec(frame=FRAME, regions=(region,), outline=spec_of(pixels, turns=True))
    )
    (there,) = regions.cut(pixels)
    (here,) = regions.cut(laid(pixels, moved(37.3, -21.6, 14.2, about=(400, 400))))
    worst = np.abs(there.pixels.astype(float) - here.pixels).mean()
    (unmoved,) = Regions(RegionsSpec(frame=FRAME, regions=(region,))).cut(
        laid(pixels, moved(37.3, -21.6, 14.2, about=(400, 400)))
    )
    assert worst < 3 < np.abs(there.pixels.astype(float) - unmoved.pixels).mean()


def drawn(angle=0.0, at=(200.0, 150.0), size=(160, 60)):
    """A grey bar on a dark ground."""
    pixels = np.full((300, 400), 30, np.uint8)
    corners = cv2.boxPoints((at, size, angle))
    cv2.fillPoly(pixels, [np.round(corners).astype(np.int32)], (150,))
    return pixels


WINDOW = (10, 10, 390, 290)
BAR = OutlineSpec(within=WINDOW, at=(200, 150), angle=0, size=(160, 60), most_degrees=40)


@pytest.mark.parametrize("angle", [-35, -8, 0, 3.5, 20])
def test_direction_and_size_are_those_that_were_drawn(angle):
    found = outline(drawn(angle), WINDOW, 25)
    assert found.angle == pytest.approx(angle, abs=0.5)
    assert found.size == pytest.approx((160, 60), abs=2.5)
    assert found.at == pytest.approx((200, 150), abs=1)
    turned = motion(drawn(angle), BAR)
    assert math.degrees(math.atan2(turned[1, 0], turned[0, 0])) == pytest.approx(angle, abs=0.5)


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.full((300, 400), 30, np.uint8), "nothing in .* differs from its border by 25 grey"),
        (drawn(60), r"is turned by 59\.9°, and 40° are allowed"),
        (drawn(at=(330, 150)), "reaches beyond the window"),
        (drawn(size=(60, 30)), "what is there is 0.19 times as large"),
        (drawn() | drawn(at=(200, 220)), "there are two pieces of similar size"),
        (drawn() | drawn(at=(200, 200)), r"what is there is 1\.\d+ times as large"),
    ],
)
def test_what_is_no_part_in_its_place_is_said(pixels, said):
    with pytest.raises(InspectionError, match=said):
        motion(pixels, BAR)


def test_dirt_holes_and_print_do_not_move_the_part():
    rng = np.random.default_rng(3)
    dirty = drawn(5).astype(int) + rng.integers(-8, 9, (300, 400))
    dirty[140:160, 190:210] = 30
    dirty[30:34, 30:33] = 200
    clean = motion(drawn(5), BAR)
    assert np.abs(motion(dirty.astype(np.uint8), BAR) - clean).max() < 0.2


def test_the_blank_frame_shows_the_part_in_its_place():
    region = RegionSpec(name="all", crop=(150, 130, 250, 170))
    spec = RegionsSpec(frame=(400, 300), regions=(region,), outline=BAR)
    (cut,) = Regions(spec).cut(spec.blank(127))
    assert cut.box.left == pytest.approx(150, abs=1)
    still = replace(spec, outline=replace(BAR, turns=False))
    (cut,) = Regions(still).cut(drawn(at=(212, 143)))
    assert cut.pixels.shape == (40, 100)
    assert (cut.box.left, cut.box.top) == pytest.approx((162, 123), abs=1)


def test_a_turned_region_is_drawn_as_it_lies():
    """The corners go through a process and to another size, as those of the live picture do."""
    region = RegionSpec(name="all", crop=(150, 130, 250, 170))
    spec = RegionsSpec(frame=(400, 300), regions=(region,), outline=BAR)
    (cut,) = Regions(spec).cut(drawn(20))
    found = FoundRegion(name="all", box=cut.box, score=1.0, corners=cut.corners)
    assert FoundRegion.told(json.loads(json.dumps(asdict(found)))) == found
    frame = np.full((300, 400, 3), 90, np.uint8)
    inspected = replace(inspection(1.0, Box.around(frame)), regions=(found,))
    shown = boxed(frame, inspected, 0.5)
    for x, y in found.scaled(of=Box.around(frame), to=Box.around(shown)).corners:
        assert (shown[round(y), round(x)] != 90).any()
    left, top = cut.box.left, cut.box.top
    assert (shown[top : top + 5, left : left + 5] == 90).all()


def test_a_part_that_is_turned_out_of_the_frame_has_no_verdict():
    region = RegionSpec(name="all", crop=(100, 50, 390, 250))
    spec = RegionsSpec(frame=(400, 300), regions=(region,), outline=BAR)
    with pytest.raises(InspectionError, match=r"all is not all in the frame: .* turned by 30\.\d°"):
        Regions(spec).cut(drawn(30))
