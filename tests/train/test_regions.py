"""Training, calibration, evaluation and the line cut regions by the same code."""

from dataclasses import replace

import numpy as np
import pytest

from calibration.scores import Picture, score_pictures
from engine.backends.opening import open_inspector
from engine.cross_fitted import cross_fitted_of
from engine.errors import InspectionError, TrainingError
from engine.frame import Box
from engine.image import read_image
from engine.methods import open_method
from engine.region import Regions
from engine.region_spec import RegionSpec, RegionsSpec
from tests.training_parts import SIZE, part
from train.datasets import Images, TrainingImages
from train.evaluate import scored
from train.export.gate import load_network
from train.network import TorchBackend
from train.report import examine, small_defects, write_report
from train.run import train_bundle

MIDDLE = RegionSpec(name="middle", crop=(16, 12, 64, 68), rotate=90)
CORNER = RegionSpec(name="corner", crop=(60, 60, 80, 80))


def spec(*regions):
    return RegionsSpec(frame=(SIZE, SIZE), regions=regions)


@pytest.fixture(scope="module")
def trained(source, nearest, tmp_path_factory):
    out = tmp_path_factory.mktemp("regions") / "bundle"
    settings = replace(nearest, hold_out=0.25)
    return train_bundle(
        source, out, settings, weights=None, regions=spec(MIDDLE), defects=4, accept_flips=True
    )


def test_training_sees_what_the_line_cuts(source, split):
    seen = TrainingImages(Images(source), split, spec(MIDDLE))
    assert (len(seen.good), len(seen.defective)) == (18, 4)
    for index, item in enumerate(split.training):
        (cut,) = Regions(spec(MIDDLE)).cut(read_image(source.path(item.path)))
        assert np.array_equal(seen.frame(index), cut.pixels)
        assert seen.mask(index).shape == (56, 48)
    box = Box(left=0, top=0, right=48, bottom=56)
    assert seen.box_in_frame(0, box) == Box(left=12, top=16, right=68, bottom=64)


def test_a_defect_is_learnt_from_where_it_is(source, split):
    seen = TrainingImages(Images(source), split, spec(MIDDLE, CORNER))
    assert (len(seen.good), len(seen.defective)) == (36, 4)  # none of them is in the corner
    assert all(seen.frame(index).shape == (56, 48, 3) for index in seen.defective)
    assert all(seen.mask(index).any() for index in seen.defective)
    assert not TrainingImages(Images(source), split, spec(CORNER)).defective


def test_a_defect_that_nobody_has_drawn_may_be_in_any_region(source, split):
    unmarked = tuple(replace(item, mask=None) for item in split.train_defective)
    split = replace(split, train_defective=unmarked)
    assert len(TrainingImages(Images(source), split, spec(MIDDLE)).defective) == 4
    with pytest.raises(TrainingError, match=r"has no mask, .* in which of the 2 regions"):
        TrainingImages(Images(source), split, spec(MIDDLE, CORNER))


def test_images_of_another_size_end_training(source, split):
    with pytest.raises(TrainingError, match=r"test/.*80 × 80 pixels, .* for 81 × 80"):
        TrainingImages(Images(source), split, RegionsSpec(frame=(81, 80), regions=(MIDDLE,))).frame(
            0
        )


def test_the_line_scores_a_frame_as_training_its_region(trained):
    bundle, pixels = trained.written.bundle, np.asarray(part(900, "spot")[0])
    assert bundle.manifest.method.regions == spec(MIDDLE)
    (cut,) = Regions(spec(MIDDLE)).cut(pixels)
    bare = replace(bundle.manifest.method, regions=None)
    with TorchBackend(load_network(bundle)) as backend:
        alone = open_method(bare, backend).inspect(cut.pixels)
    with open_inspector(bundle) as inspector:
        found = inspector.inspect(pixels)
        beside = pixels.copy()
        beside[:10] = 255
        assert inspector.inspect(beside).score == found.score
        with pytest.raises(InspectionError, match="80 × 70"):
            inspector.inspect(pixels[:70])
        pictures = [Picture(name="one", pixels=pixels)]
        calibrated = score_pictures(
            inspector, pictures, label="good", training=frozenset(), progress=lambda: None
        )
        assert list(calibrated.values) == [found.score]
    assert found.score == pytest.approx(alone.score, rel=1e-3)
    assert found.passes[0].box == Box(left=12, top=16, right=68, bottom=64)
    (region,) = found.regions
    assert (region.name, region.score, region.box) == ("middle", found.score, found.passes[0].box)
    items = trained.split.test[:2]
    with open_inspector(bundle) as inspector:
        images, pixel_ranking = scored(inspector, trained.images.source, items)
        assert [one.score for one in images] == [
            inspector.inspect(trained.images.pixels(item)).score for item in items
        ]
    del pixel_ranking


def test_what_training_knows_of_a_region_is_in_frame_pixels(trained, tmp_path):
    scores = cross_fitted_of(trained.written.bundle)
    outer = Box(left=12, top=16, right=68, bottom=64)
    boxes = [each.box for each in (*scores.good, *scores.defective) if each.box is not None]
    assert boxes
    for box in boxes:
        assert outer.left <= box.left < box.right <= outer.right
        assert outer.top <= box.top < box.bottom <= outer.bottom
    write_report(tmp_path / "page.html", examine(trained), trained.images)
    spots = small_defects(trained, 0.0)
    assert (spots.width, spots.height) == (56, 48)
