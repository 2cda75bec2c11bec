"""Regions are cut alike everywhere, and what is found in one comes back to its place."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from engine.errors import InspectionError
from engine.frame import Box, Inspection, Pass
from engine.inspector import OpenInspector
from engine.methods.atac import AtacMethod
from engine.region import Regions, cut_mask, over_frame
from engine.region_inspector import in_regions
from engine.region_spec import EdgeSpec, RegionSpec, RegionsSpec
from tests.tiny_bundle import tiny_bundle

WIDTH, HEIGHT = 90, 60


def frame(seed=0, channels=3):
    shape = (HEIGHT, WIDTH, channels) if channels else (HEIGHT, WIDTH)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def regions(*each, find=()):
    return Regions(RegionsSpec(frame=(WIDTH, HEIGHT), regions=each, find=find))


def region(name="cap", crop=(10, 20, 40, 50), **changes):
    return RegionSpec(name=name, crop=crop, **changes)


@pytest.mark.parametrize("channels", [0, 3])
def test_a_crop_is_the_pixels_of_the_frame(channels):
    pixels = frame(channels=channels)
    (cut,) = regions(region()).cut(pixels)
    assert np.array_equal(cut.pixels, pixels[20:50, 10:40])
    assert not np.shares_memory(cut.pixels, pixels)
    assert cut.box == Box(left=10, top=20, right=40, bottom=50)
    inner = cut.in_frame(Box(left=1, top=2, right=5, bottom=6), Box.around(pixels))
    assert inner == Box(left=11, top=22, right=15, bottom=26)


def test_a_quarter_turn_is_exact_and_its_boxes_come_back():
    pixels = frame()
    (cut,) = regions(region(crop=(30, 20, 60, 40), rotate=90)).cut(pixels)
    # The rectangle turned clockwise: its own left side lies above in the frame.
    assert np.array_equal(cut.pixels, np.rot90(pixels[15:45, 35:55]))
    assert cut.box == Box(left=35, top=15, right=55, bottom=45)
    for box in (Box(left=0, top=0, right=3, bottom=5), Box(left=7, top=2, right=30, bottom=20)):
        there = cut.in_frame(box, Box.around(pixels))
        seen = np.rot90(pixels[there.top : there.bottom, there.left : there.right])
        assert np.array_equal(seen, cut.pixels[box.top : box.bottom, box.left : box.right])


def test_a_small_turn_shows_a_tilted_edge_upright():
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    angle = np.radians(8)
    # Bright on the far side of a line that leans as the region does.
    side = (columns - 45) * np.cos(angle) + (rows - 30) * np.sin(angle)
    pixels = np.where(side > 0, 200, 50).astype(np.uint8)
    (cut,) = regions(region(crop=(25, 15, 65, 45), rotate=8)).cut(pixels)
    assert (cut.pixels[:, :17] == 50).all()
    assert (cut.pixels[:, 23:] == 200).all()


def test_ignored_places_look_alike_whatever_is_there():
    spec = region(ignore=(((0, 0), (20, 0), (20, 89), (0, 89)), ((30, 40), (33, 40), (30, 44))))
    one, other = (regions(spec).cut(frame(seed))[0] for seed in (1, 2))
    assert (one.pixels[one.ignored] == 127).all()
    assert np.array_equal(one.pixels[other.ignored], other.pixels[other.ignored])
    assert one.ignored[:, :11].all()
    assert one.ignored[20, 20]
    assert not one.ignored[:, 11:20].any()
    assert np.array_equal(one.pixels[:, 11:20], frame(1)[20:50, 21:30])


def test_a_mask_is_cut_like_the_frame_and_ignored_places_are_no_defect():
    spec = region(
        crop=(30, 20, 60, 40), rotate=90, ignore=(((35, 15), (40, 15), (40, 44), (35, 44)),)
    )
    (cut,) = regions(spec).cut(frame())
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[20:24, 36:50] = True
    expected = np.rot90(mask[15:45, 35:55]) & ~cut.ignored
    assert np.array_equal(cut_mask(mask, cut), expected)


@pytest.mark.parametrize(
    ("edge", "band", "at", "shift"),
    [
        ("left", (0, 20, 45, 40), 25, (6, 0)),
        ("right", (45, 20, 90, 40), 70, (-4, 0)),
        ("top", (30, 0, 60, 30), 15, (0, 5)),
        ("bottom", (30, 30, 60, 60), 45, (0, -7)),
    ],
)
def test_regions_move_with_an_edge_of_the_part(edge, band, at, shift):
    find = (EdgeSpec(edge=edge, band=band, at=at, contrast=30),)
    rng = np.random.default_rng(4)
    noise = rng.integers(-8, 9, (HEIGHT, WIDTH, 3))
    across, down = shift
    pixels = np.full((HEIGHT, WIDTH, 3), 60)
    pixels[15 + down : 45 + down, 25 + across : 70 + across] = 160
    pixels = (pixels + noise).astype(np.uint8)
    (cut,) = regions(region(crop=(30, 18, 60, 42)), find=find).cut(pixels)
    assert (cut.box.left - 30, cut.box.top - 18) == shift
    with pytest.raises(InspectionError, match=f"the part was not found: no {edge} edge"):
        regions(region(), find=find).cut(np.full((HEIGHT, WIDTH, 3), 60, np.uint8))


def test_a_frame_without_room_for_the_regions_is_no_verdict():
    find = (EdgeSpec(edge="left", band=(0, 20, 90, 40), at=25),)
    far = np.full((HEIGHT, WIDTH), 20, np.uint8)
    far[:, 80:] = 200
    with pytest.raises(InspectionError, match=r"cap is not all in the frame: .* 55 right"):
        regions(region(), find=find).cut(far)
    with pytest.raises(InspectionError, match=r"has 60 × 90 pixels, .* for 90 × 60"):
        regions(region()).cut(np.zeros((90, 60), np.uint8))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"regions": (region(crop=(60, 0, 91, 10)),)}, "cap reaches beyond the frame of 90 × 60"),
        ({"regions": (region(crop=(0, 0, 90, 60), rotate=1),)}, "reaches beyond"),
        ({"regions": (region(), region())}, "two regions are called cap"),
        ({"find": (EdgeSpec(edge="left", band=(0, 0, 91, 10), at=5),)}, "a band reaches beyond"),
        (
            {
                "find": tuple(
                    EdgeSpec(edge=edge, band=(0, 0, 20, 10), at=5) for edge in ("left", "right")
                )
            },
            "one edge for each direction",
        ),
    ],
)
def test_regions_that_cannot_be_are_refused(changes, reason):
    with pytest.raises(ValidationError, match=reason):
        RegionsSpec(**{"frame": (WIDTH, HEIGHT), "regions": (region(),)} | changes)


@pytest.mark.parametrize(
    "make",
    [lambda: region(crop=(5, 0, 5, 9)), lambda: EdgeSpec(edge="top", band=(0, 0, 5, 9), at=10)],
)
def test_rectangles_that_cannot_be_are_refused(make):
    with pytest.raises(ValidationError):
        make()


def test_the_blank_frame_has_its_part_in_place():
    for edges in (("left", "top"), ("right", "bottom")):
        spec = RegionsSpec(
            frame=(WIDTH, HEIGHT),
            regions=(region(),),
            find=(
                EdgeSpec(edge=edges[0], band=(0, 25, 90, 35), at=45),
                EdgeSpec(
                    edge=edges[1],
                    band=(50, 0, 60, 24) if edges[1] == "top" else (30, 36, 40, 60),
                    at=20 if edges[1] == "top" else 50,
                ),
            ),
        )
        (cut,) = Regions(spec).cut(spec.blank(128))
        assert cut.box == Box(left=10, top=20, right=40, bottom=50)


class Spots:
    """An inspector whose score is the brightest pixel of what it is shown; the box is its place."""

    name, workers = "spots", 1
    entered = 0

    def inspect(self, pixels):
        row, column = np.unravel_index(pixels.argmax(), pixels.shape)
        box = Box(left=int(column), top=int(row), right=int(column) + 1, bottom=int(row) + 1)
        heat = np.zeros((4, 4), np.float32)
        heat[row * 4 // pixels.shape[0], column * 4 // pixels.shape[1]] = pixels.max()
        score = float(pixels.max())
        passes = tuple(
            Pass(box=each, score=score, view_s=0, network_s=0) for each in (Box.around(pixels), box)
        )
        return Inspection(score=score, deviation=0, passes=passes, attention=heat, score_map=heat)

    def warm_up(self): ...

    def lend(self, memory): ...

    def __enter__(self):
        self.entered += 1
        return self

    def __exit__(self, *_):
        self.entered -= 1


def inspecting(tmp_path, *each):
    method = tiny_bundle(tmp_path).manifest.method
    assert isinstance(method, AtacMethod)
    spec = RegionsSpec(frame=(WIDTH, HEIGHT), regions=each)
    inspector: OpenInspector = Spots()
    return in_regions(replace(method, regions=spec), inspector)


@pytest.mark.parametrize("rotate", [0, 90, 180, 30])
def test_a_part_is_as_bad_as_its_worst_region(tmp_path, rotate):
    left, right = region("left", (5, 10, 35, 40)), region("right", (45, 15, 75, 45), rotate=rotate)
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[30, 62] = 250
    pixels[20, 10] = 90
    pixels[2, 2] = 255  # in no region
    with inspecting(tmp_path, left, right) as inspector:
        found = inspector.inspect(pixels)
    assert {each.name for each in found.regions} == {"left", "right"}
    assert found.score == max(each.score for each in found.regions) > 100
    assert found.regions[0].score == 90
    box = found.box
    assert box.left <= 62 < box.right
    assert box.top <= 30 < box.bottom
    assert max(box.width, box.height) <= 3
    # Both regions are on the maps, each in its place, and nothing is beside them.
    heat = found.score_map
    assert heat.shape == (HEIGHT, WIDTH)
    assert heat[20, 10] > 40
    assert heat[30, 62] > heat[20, 10]
    assert not heat[:8].any()


def test_where_regions_overlap_the_larger_magnitude_is_shown():
    cuts = regions(region("one"), region("two")).cut(frame())
    maps = [np.full((2, 2), value, np.float32) for value in (-3, 2)]
    whole = over_frame(zip(cuts, maps, strict=True), Box.whole(WIDTH, HEIGHT))
    assert whole[30, 20] == -3
    assert whole[5, 5] == 0


def test_maps_of_large_frames_stay_small():
    spec = RegionsSpec(frame=(2000, 1000), regions=(region(crop=(500, 250, 1500, 750)),))
    cuts = Regions(spec).cut(np.zeros((1000, 2000), np.uint8))
    whole = over_frame(iter([(cuts[0], np.ones((8, 8), np.float32))]), Box.whole(2000, 1000))
    assert whole.shape == (128, 256)
    assert whole[32:96, 64:192].all()
    assert whole.sum() == 64 * 128


def test_boxes_come_back_from_any_turn():
    rng = np.random.default_rng(5)
    for _ in range(200):
        rotate = float(rng.uniform(-359, 359))
        (cut,) = regions(region(crop=(35, 20, 55, 40), rotate=rotate)).cut(frame())
        left, right = sorted(rng.choice(21, 2, replace=False).tolist())
        top, bottom = sorted(rng.choice(21, 2, replace=False).tolist())
        box = cut.in_frame(
            Box(left=left, top=top, right=right, bottom=bottom), Box.whole(WIDTH, HEIGHT)
        )
        # Its middle is where the placement says, and it is as large as a turned box may be.
        middle = cut.placement @ np.array([(left + right) / 2, (top + bottom) / 2, 1])
        assert abs((box.left + box.right) / 2 - middle[0]) <= 1
        assert abs((box.top + box.bottom) / 2 - middle[1]) <= 1
        diagonal = np.hypot(right - left, bottom - top)
        assert max(box.width, box.height) <= diagonal + 2
