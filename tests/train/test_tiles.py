"""Tiles: how a frame is parted, and what a bundle that inspects them does."""

from dataclasses import replace

import numpy as np
import pytest

from engine.backends.opening import open_inspector
from engine.cross_fitted import cross_fitted_of
from engine.errors import ConfigurationError, TrainingError
from engine.region_spec import RegionSpec, RegionsSpec
from tests.training_parts import SIZE, part, trained
from train.datasets import Images, TrainingImages
from train.report import examine, small_defects, write_report
from train.run import train_bundle
from train.tiles import MOST, Grid, fewest, tiled, tiles_of

FIVE = (2448, 2048)


def crops(spec):
    return [region.crop for region in spec.regions]


@pytest.mark.parametrize("size", [FIVE, (2047, 1531), (640, 480)])
@pytest.mark.parametrize("grid", [Grid(columns=3, rows=2), Grid(columns=1, rows=4)])
def test_tiles_cover_the_frame_are_of_one_size_and_overlap(size, grid):
    found = crops(tiled(None, grid, frame=size, side=224))
    assert len(found) == grid.count
    seen = np.zeros(size[::-1], np.uint8)
    for left, top, right, bottom in found:
        assert (right - left, bottom - top) == grid.size(size)
        seen[top:bottom, left:right] += 1
    assert seen.min() == 1
    assert seen.max() == (4 if min(grid.columns, grid.rows) > 1 else 2)
    shared = (seen[0] == 2).sum() / max(1, grid.columns - 1)
    assert shared == pytest.approx(grid.size(size)[0] / 8 * (grid.columns > 1), abs=2)


@pytest.mark.parametrize(
    ("size", "side", "grid"),
    [
        (FIVE, 224, (3, 3)),
        (FIVE, 448, (2, 2)),
        ((640, 480), 224, (1, 1)),
        ((4000, 500), 224, (6, 1)),
    ],
)
def test_auto_takes_the_fewest_tiles_that_show_enough(size, side, grid):
    assert fewest(size, side=side) == Grid(columns=grid[0], rows=grid[1])


def test_a_small_frame_stays_in_one_piece():
    assert tiled(None, "auto", frame=(640, 480), side=224) is None
    one = RegionsSpec(frame=(640, 480), regions=(RegionSpec(name="cap", crop=(9, 9, 99, 99)),))
    assert tiled(one, "auto", frame=(1, 1), side=224) == one


def test_regions_are_tiled_as_they_lie():
    cap = RegionSpec(
        name="cap", crop=(100, 100, 300, 200), rotate=90, ignore=(((0, 0), (9, 0), (9, 9)),)
    )
    (left, right) = tiled(
        RegionsSpec(frame=(640, 480), regions=(cap,)), tiles_of("2x1"), frame=(1, 1), side=224
    ).regions
    assert (left.name, right.name) == ("cap: row 1, column 1", "cap: row 1, column 2")
    assert left.ignore == cap.ignore
    whole, first, last = (each.placement() @ (0, 0, 1) for each in (cap, left, right))
    assert first == pytest.approx(whole, abs=1)
    assert last[0] == pytest.approx(whole[0], abs=1)  # columns run down in the frame
    assert last[1] > whole[1] + 80


@pytest.mark.parametrize("wrong", ["", "3", "0x2", "3x", "-1x2", "9x9", "3 by 2"])
def test_tiles_are_two_numbers(wrong):
    with pytest.raises(ConfigurationError, match=r"--tiles: .*write 3x2 for three tiles across"):
        tiles_of(wrong)


def test_what_cannot_be_tiled_is_one_line():
    with pytest.raises(ConfigurationError, match="needs more than 32 tiles for 9000 × 9000"):
        fewest((9000, 9000), side=224)
    three = [RegionSpec(name=f"{i}", crop=(0, 0, 99, 99)) for i in range(3)]
    with pytest.raises(ConfigurationError, match="makes 48 tiles of 3 regions; 32 are possible"):
        tiled(RegionsSpec(frame=(99, 99), regions=three), tiles_of("4x4"), frame=(1, 1), side=224)
    with pytest.raises(ConfigurationError, match="is too fine for 20 × 99 pixels"):
        tiled(None, Grid(columns=MOST, rows=1), frame=(20, 99), side=224)
    long = RegionSpec(name="a" * 64, crop=(0, 0, 99, 99))
    with pytest.raises(ConfigurationError, match="'2x2'"):
        tiled(RegionsSpec(frame=(99, 99), regions=[long]), tiles_of("2x2"), frame=(1, 1), side=9)


@pytest.fixture(scope="module")
def ended(source, nearest, tmp_path_factory):
    return train_bundle(
        source,
        tmp_path_factory.mktemp("tiles") / "bundle",
        replace(nearest, hold_out=0.25),
        weights=None,
        tiles=Grid(columns=2, rows=1),
        defects=4,
        accept_flips=True,
    )


def test_a_defect_that_nobody_has_drawn_is_learnt_where_it_is(source, split, nearest, tmp_path):
    masks = [item.mask is not None for item in split.train_defective]
    unmarked = tuple(replace(item, mask=None) for item in split.train_defective)
    spec = tiled(None, tiles_of("1x5"), frame=(SIZE, SIZE), side=48)  # the last rows show no part
    drawn = TrainingImages(Images(source), split, spec)
    undrawn = TrainingImages(
        Images(source), replace(split, train_defective=unmarked), spec, anywhere=True
    )
    assert all(masks)
    assert len(undrawn.by_image(undrawn.defective)) == len(unmarked)
    assert len(undrawn.defective) == 5 * len(unmarked) > len(drawn.defective)
    run = trained(nearest, undrawn, tmp_path)
    scores = {one.path: one.score for one in run.cross_fitted.defective}
    assert min(scores.values()) > np.median([one.score for one in run.cross_fitted.good])
    learnt = run.network.bank.known_origin.unique().tolist()
    assert learnt == [pictures[0] for pictures in undrawn.by_image(undrawn.defective)]


def test_a_part_is_left_out_with_all_its_tiles(ended):
    scores = cross_fitted_of(ended.written.bundle)
    assert scores.folds == len(ended.split.train_good)
    assert {one.path for one in scores.defective} == {
        item.path for item in ended.split.train_defective
    }
    without = {one.path: one.score for one in scores.good}
    with open_inspector(ended.written.bundle) as inspector:
        found = inspector.inspect(np.asarray(part(900)[0]))
        for item in ended.split.train_good:
            deployed = inspector.inspect(ended.images.pixels(item))
            assert deployed.score <= without[item.path] + 1e-3
    assert [each.name for each in found.regions] == ["row 1, column 1", "row 1, column 2"]
    assert found.score == max(region.score for region in found.regions)


def test_the_report_puts_spots_anywhere_on_the_frame(ended, tmp_path):
    spots = small_defects(ended, 0.0)
    assert (spots.width, spots.height) == (SIZE, SIZE)
    write_report(tmp_path / "page.html", examine(ended), ended.images, spots=spots)
    assert "2 regions of each frame" in (tmp_path / "page.html").read_text()


def test_frames_of_several_sizes_cannot_be_tiled(source, split):
    spec = tiled(None, tiles_of("2x2"), frame=(SIZE + 1, SIZE), side=48)
    with pytest.raises(TrainingError, match=r"80 × 80 pixels, .* for 81 × 80"):
        TrainingImages(Images(source), split, spec).frame(0)
