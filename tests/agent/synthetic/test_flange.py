"""Generated parts: a pure function of seed and number, with truth and masks."""

import cv2
import numpy as np

from agent.synthetic.flange import (
    DEFECTS,
    VISIBLE,
    made,
    part,
    truth,
    visibility,
    write_parts,
)
from engine.image import read_image


def test_generated_parts_are_a_pure_function_of_seed_and_number():
    one, same, other = part(5, 3, 1.0), part(5, 3, 1.0), part(6, 3, 1.0)
    assert np.array_equal(one.pixels, same.pixels)
    assert not np.array_equal(one.pixels, other.pixels)
    assert one.pixels.shape == (480, 640, 3)
    assert one.pixels.dtype == np.uint8
    assert part(5, 3, 0.0).defect is None
    assert not part(5, 3, 0.0).mask.any()


def test_every_kind_of_defect_changes_the_picture_where_its_mask_says():
    found = {}
    number = 0
    while set(found) != set(DEFECTS):
        made = part(1, number, 1.0)
        assert truth(1, number, 1.0) == made.defect
        found.setdefault(made.defect, []).append(made)
        number += 1
    for made in (each for kind in found.values() for each in kind):
        assert set(np.unique(made.mask)) == {0, 255}
        share = (made.mask > 0).mean()
        assert 0.00005 < share < 0.03


def test_a_part_may_have_several_defects_of_one_kind():
    masks = [made(1, number, "missing_hole", most=3).mask for number in range(8)]
    holes = [cv2.connectedComponents(mask)[0] - 1 for mask in masks]
    assert set(holes) == {1, 2, 3}


def test_visibility_is_contrast_times_the_root_of_the_area():
    before = np.full((384, 384, 4), 100, np.uint8)
    before[..., 3] = 255
    after = before.copy()
    after[:10, :10, :3] += 30
    assert visibility(before, after) == VISIBLE == 300
    after[:] = before
    after[..., :3] += 11  # everywhere, but no more than grooves differ
    assert visibility(before, after) == 0
    after[:] = before
    after[:10, :10, 3] = 0  # where a piece is gone the belt is seen
    assert visibility(before, after) > VISIBLE


def test_parts_are_written_in_the_layout_of_mvtec(tmp_path):
    write_parts(tmp_path, seed=1, good=3, defective=7, test_good=2)
    count = {
        path.relative_to(tmp_path).as_posix(): len(list(path.glob("*.png")))
        for path in sorted(tmp_path.rglob("*"))
        if path.is_dir() and any(path.glob("*.png"))
    }
    kinds = {kind: 2 if kind == DEFECTS[0] else 1 for kind in DEFECTS}
    assert count == (
        {"train/good": 3, "test/good": 2}
        | {f"test/{kind}": n for kind, n in kinds.items()}
        | {f"ground_truth/{kind}": n for kind, n in kinds.items()}
    )
    for kind in DEFECTS:
        mask = read_image(tmp_path / "ground_truth" / kind / "000_mask.png")
        assert mask.shape == (480, 640)
        assert set(np.unique(mask)) == {0, 255}
        assert read_image(tmp_path / "test" / kind / "000.png").shape == (480, 640, 3)


def test_a_kind_that_is_named_twice_is_drawn_twice_as_often(tmp_path):
    kinds = ("stain", "chip", "stain")
    write_parts(tmp_path, seed=1, good=0, defective=5, test_good=0, kinds=kinds)
    counts = [len(list((tmp_path / "test" / kind).glob("*.png"))) for kind in ("stain", "chip")]
    assert counts == [3, 2]
