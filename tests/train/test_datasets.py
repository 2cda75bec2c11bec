import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import ConfigurationError, ImageError, TrainingError
from engine.image import read_image
from train.datasets import (
    SPLIT_JSON,
    Images,
    TrainingImages,
    draw_split,
    find_source,
    left_out,
    read_listed,
    read_mask,
)


def drawn(root: Path, **options):
    return draw_split(
        find_source(root, None, None), **{"defects": 4, "hold_out": 0.25, "seed": 0} | options
    )


def paths(items):
    return [item.path for item in items]


@pytest.fixture
def copy(parts, tmp_path):
    return Path(shutil.copytree(parts, tmp_path / "copy"))


def test_every_image_is_in_one_place(source, split):
    everywhere = (*split.training, *split.held_out_good, *split.test)
    assert sorted(paths(everywhere)) == sorted(
        p.relative_to(source.root).as_posix()
        for folder in ("train", "test")
        for p in (source.root / folder).rglob("*.png")
    )
    assert len({item.sha256 for item in everywhere}) == len(everywhere)
    assert (len(split.train_good), len(split.held_out_good)) == (18, 6)
    assert (len(split.train_defective), len(split.test)) == (4, 12)
    assert all(item.mask for item in everywhere if item.defective)


def test_a_split_does_not_depend_on_the_order_of_the_directory(parts, split, tmp_path):
    again = tmp_path / "again"
    files = [path for path in parts.rglob("*") if path.is_file()]
    for path in np.random.default_rng(0).permutation(files):
        target = again / path.relative_to(parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    assert drawn(again) == split


def test_a_seed_draws_and_more_defects_include_the_fewer(parts):
    one, four = drawn(parts, defects=1), drawn(parts, defects=4)
    assert set(paths(one.train_defective)) < set(paths(four.train_defective))
    assert one.train_good == four.train_good
    other = drawn(parts, seed=1)
    assert other.train_defective != four.train_defective
    assert other.held_out_good != four.held_out_good


def test_defaults_leave_half_of_the_defects_to_the_test(parts):
    assert len(drawn(parts, defects=None).train_defective) == 5
    assert drawn(parts, hold_out=0.0).held_out_good == ()
    unseen = drawn(parts, hold_out=0.0).unseen_good
    assert {item.path.split("/")[0] for item in unseen} == {"test"}


def test_a_split_survives_its_file(split):
    assert SPLIT_JSON.validate_json(SPLIT_JSON.dump_json(split)) == split


def test_repeated_images_count_once_and_never_in_train_and_test(copy):
    shutil.copyfile(copy / "train/good/003.png", copy / "test/good/zzz.png")
    # Another file format, the same pixels.
    Image.open(copy / "test/spot/000.png").save(copy / "test/spot/zzz.bmp")
    split = drawn(copy)
    assert [(d.path, d.same_as) for d in split.dropped] == [
        ("test/good/zzz.png", "train/good/003.png"),
        ("test/spot/zzz.bmp", "test/spot/000.png"),
    ]
    assert "test/good/zzz.png" not in paths(split.test)


def test_one_image_cannot_be_good_and_defective(copy):
    shutil.copyfile(copy / "train/good/003.png", copy / "test/spot/zzz.png")
    with pytest.raises(TrainingError, match=r"train/good/003\.png .* test/spot/zzz\.png"):
        drawn(copy)


def test_damaged_images_are_all_named(copy):
    (copy / "train/good/001.png").write_bytes(b"")
    cut = (copy / "test/spot/002.png").read_bytes()[:200]
    (copy / "test/spot/002.png").write_bytes(cut)
    with pytest.raises(TrainingError) as error:
        drawn(copy)
    assert "2 of 40 images cannot be used" in str(error.value)
    assert "train/good/001.png: is empty" in str(error.value)
    assert "test/spot/002.png: is damaged" in str(error.value)


def test_too_few_images_say_how_many_are_needed(copy):
    for path in sorted((copy / "train/good").iterdir())[9:]:
        path.unlink()
    with pytest.raises(TrainingError, match=r"leaves 7 to train on .* at least 8"):
        drawn(copy)
    with pytest.raises(TrainingError, match=r"--defects 11 asks for more .* than the 10"):
        drawn(copy, defects=11)


def test_plain_folders_give_a_quarter_of_the_good_to_the_test(parts, tmp_path):
    shutil.copytree(parts / "train/good", tmp_path / "data/good")
    for kind in ("spot", "scratch"):
        shutil.copytree(parts / "test" / kind, tmp_path / "data/defective" / kind)
    by_data = drawn(tmp_path / "data")
    source = find_source(None, tmp_path / "data/good", tmp_path / "data/defective")
    by_folder = draw_split(source, defects=4, hold_out=0.25, seed=0)
    assert by_data == by_folder
    good = [item for item in by_data.test if not item.defective]
    assert (len(good), len(by_data.held_out_good), len(by_data.train_good)) == (6, 4, 14)
    assert {item.kind for item in by_data.test} == {"good", "spot", "scratch"}
    for item in by_data.training:
        assert read_listed(source, item).shape == (80, 80, 3)


@pytest.mark.parametrize("by_type", [True, False])
def test_plain_folders_have_their_masks_in_ground_truth(parts, tmp_path, by_type):
    shutil.copytree(parts / "train/good", tmp_path / "good")
    defects, masks = tmp_path / "defective", tmp_path / "ground_truth"
    if by_type:
        shutil.copytree(parts / "test/spot", defects / "spot")
        shutil.copytree(parts / "ground_truth/spot", masks / "spot")
        (masks / "spot/004_mask.png").unlink()
    else:
        shutil.copytree(parts / "test/spot", defects)
        shutil.copytree(parts / "ground_truth/spot", masks)
        (masks / "004_mask.png").unlink()
    split = drawn(tmp_path, defects=5)
    source = find_source(tmp_path, None, None)
    of_mask = {
        item.path: read_mask(source, item, read_listed(source, item))
        for item in split.train_defective
    }
    missing = [path for path, mask in of_mask.items() if mask is None]
    assert [Path(path).name for path in missing] == ["004.png"]
    assert all(mask.any() for mask in of_mask.values() if mask is not None)
    two = find_source(None, tmp_path / "good", defects)
    apart = draw_split(two, defects=5, hold_out=0.25, seed=0)
    assert not any(item.mask for item in apart.train_defective)


def test_folders_beside_good_are_types_of_defect(parts, tmp_path):
    shutil.copytree(parts / "train/good", tmp_path / "good")
    for kind in ("spot", "scratch"):
        shutil.copytree(parts / "test" / kind, tmp_path / kind)
    shutil.copytree(parts / "ground_truth", tmp_path / "ground_truth")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no image")
    for name in (".ipynb_checkpoints", "@eaDir"):
        shutil.copytree(parts / "test" / "spot", tmp_path / name)
    source = find_source(tmp_path, None, None)
    assert source.types == ("scratch", "spot")
    split = drawn(tmp_path, defects=6)
    everything = [*split.training, *split.held_out_good, *split.test]
    assert {item.kind for item in everything} == {"good", "spot", "scratch"}
    spots = [item for item in everything if item.kind == "spot"]
    assert spots
    assert all(item.path == f"spot/{Path(item.path).name}" for item in spots)
    assert all(item.mask is not None for item in spots)
    for item in spots:
        assert read_mask(source, item, read_listed(source, item)).any()


@pytest.mark.parametrize("name", ["masks", "labels", "val"])
def test_a_folder_that_is_no_type_of_defect_is_refused_by_name(parts, tmp_path, name):
    shutil.copytree(parts / "train/good", tmp_path / "good")
    shutil.copytree(parts / "test/spot", tmp_path / name)
    with pytest.raises(ConfigurationError, match=f"has {name} beside good"):
        find_source(tmp_path, None, None)


def test_types_beside_defective_are_refused_by_name(parts, tmp_path):
    shutil.copytree(parts / "train/good", tmp_path / "good")
    shutil.copytree(parts / "test/spot", tmp_path / "defective")
    shutil.copytree(parts / "test/scratch", tmp_path / "scratch")
    with pytest.raises(ConfigurationError, match="has scratch beside defective"):
        find_source(tmp_path, None, None)


def test_what_other_programs_leave_is_no_type_of_defect_and_is_said(copy):
    shutil.copytree(copy / "test/spot", copy / "test/.ipynb_checkpoints")
    shutil.copytree(copy / "test/spot", copy / "train/spot")
    mask = next((copy / "ground_truth/spot").iterdir())
    mask.rename(mask.with_name("another.png"))
    (copy / "test/spot/photo.jfif").write_bytes(b"x")
    shutil.copy(next((copy / "test/spot").glob("*.png")), copy / "test/loose.png")
    split = drawn(copy)
    assert {item.kind for item in (*split.training, *split.test)} == {"good", "spot", "scratch"}
    lines = left_out(find_source(copy, None, None))
    assert len(lines) == 4
    assert "1 hidden (first: .ipynb_checkpoints)" in lines[0]
    assert "(first: spot/photo.jfif)" in lines[0]
    assert "only good is used there" in lines[1]
    assert "1 images lie beside its folders and are not used (first: loose.png)" in lines[2]
    assert "1 files belong to no image (first: ground_truth/spot/another.png)" in lines[3]


def test_a_folder_that_cannot_be_read_ends_training(copy, monkeypatch):
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not str(path).endswith("spot") and allowed(path, mode)
    )
    with pytest.raises(TrainingError, match=r"spot cannot be read \(Permission denied\)"):
        drawn(copy)


def test_without_any_defect_only_good_images_are_split(parts, tmp_path):
    shutil.copytree(parts / "train/good", tmp_path / "good")
    split = drawn(tmp_path, defects=None)
    assert split.train_defective == ()
    assert split.train_good


def test_an_empty_class_is_named(parts, tmp_path):
    shutil.copytree(parts / "train/good", tmp_path / "good")
    (tmp_path / "defective").mkdir()
    with pytest.raises(TrainingError, match="defective holds no images"):
        drawn(tmp_path, defects=None)


def test_without_unseen_good_images_nothing_could_be_compared(copy):
    shutil.rmtree(copy / "test/good")
    with pytest.raises(TrainingError, match=r"hold some out: --hold-out 0\.15"):
        drawn(copy, hold_out=0.0)
    assert drawn(copy).unseen_good


def test_folders_that_do_not_fit_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="has neither train/good"):
        find_source(tmp_path / "empty", None, None)
    with pytest.raises(ConfigurationError, match=r"--data.*is not a folder"):
        find_source(tmp_path / "absent", None, None)
    with pytest.raises(ConfigurationError, match=r"--defective.*is not a folder"):
        find_source(None, tmp_path / "empty", tmp_path / "absent")
    with pytest.raises(ConfigurationError, match="needs --good"):
        find_source(None, None, tmp_path / "empty")
    with pytest.raises(ConfigurationError, match="give --data DIR"):
        find_source(None, None, None)
    (tmp_path / "good").mkdir()
    with pytest.raises(TrainingError, match="has only 0 different good images"):
        draw_split(find_source(tmp_path, None, None), defects=0, hold_out=0.0, seed=0)


def test_good_images_are_named_once(parts):
    with pytest.raises(ConfigurationError, match=r"--good: .*does not go with --data"):
        find_source(parts, parts / "train/good", None)


def test_names_that_are_no_text_are_told(copy):
    image = copy / "train/good/003.png"
    image.rename(os.fsdecode(os.fsencode(image.parent) + b"/gr\xfcn.png"))
    with pytest.raises(TrainingError, match=r"(?s)1 of 40 .*rename.*gr\\xfcn\.png"):
        drawn(copy)


def test_an_image_that_changed_since_is_refused(copy):
    split = drawn(copy)
    item = split.train_good[0]
    pixels = read_image(copy / item.path)
    Image.fromarray(pixels[::-1]).save(copy / item.path)
    with pytest.raises(TrainingError, match="is not the image that the split lists"):
        read_listed(find_source(copy, None, None), item)


def test_masks_show_where_the_defect_is(copy):
    source, split = find_source(copy, None, None), drawn(copy)
    images = TrainingImages(Images(source), split)
    assert not images.mask(images.good[0]).any()
    index = images.defective[0]
    mask = images.mask(index)
    assert mask.shape == images.frame(index).shape[:2]
    assert 0.005 < mask.mean() < 0.1

    item = split.train_defective[0]
    Image.open(copy / item.mask).resize((40, 40)).save(copy / item.mask)
    enlarged = read_mask(source, item, images.frame(index))
    assert enlarged.shape == mask.shape
    assert (enlarged & mask).sum() > 0.5 * mask.sum()
    Image.new("L", (10, 20)).save(copy / item.mask)
    with pytest.raises(ImageError, match=r"is \(20, 10\) pixels where"):
        read_mask(source, item, images.frame(index))


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "good", "test", "masks"),
    [("mvtec_bottle", 178, 73, 63), ("magnetic_tile", 128, 442, 392)],
)
def test_real_folders_split(data, name, good, test, masks):
    split = drawn(data / name, defects=10, hold_out=0.15)
    assert len(split.train_defective) == 10
    assert (len(split.train_good), len(split.test)) == (good, test)
    listed = [item for item in (*split.train_defective, *split.test) if item.defective]
    assert sum(item.mask is not None for item in listed) == masks


@pytest.mark.data
def test_real_plain_folders_lose_their_duplicates(data):
    source = find_source(None, data / "brain_mri/no", data / "brain_mri/yes")
    split = draw_split(source, defects=10, hold_out=0.15, seed=0)
    assert split.dropped
    everywhere = (*split.training, *split.held_out_good, *split.test)
    assert len(everywhere) + len(split.dropped) == 253
