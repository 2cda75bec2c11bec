"""What below a folder is an image of a part, and that what is left out is said."""

import os
from pathlib import Path

import pytest

from engine.listing import UNREADABLE, find_images


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_images_are_listed_in_one_order_by_their_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "b.PNG", "a.jpg", "sub/c.tif", "sub.png/d.bmp")
    names = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path).files]
    assert names == ["a.jpg", "b.PNG", "sub/c.tif", "sub.png/d.bmp"]
    assert str(find_images(tmp_path)) == ""


@pytest.mark.parametrize(
    "name",
    [
        "._part1.jpg",
        ".part1.jpg~part.jpg",
        ".ipynb_checkpoints/part1-checkpoint.jpg",
        ".Trash-0/files/deleted.jpg",
        ".AppleDouble/part1.jpg",
        "@eaDir/part1.jpg/SYNOPHOTO_THUMB_XL.jpg",
        "#recycle/part1.jpg",
        "$RECYCLE.BIN/S-1/part1.jpg",
        "System Volume Information/part1.jpg",
        "__MACOSX/part1.jpg",
        "sub/@eaDir/part1.jpg",
        "Network Trash Folder/part1.jpg",
        "~snapshot/hourly.0/part1.jpg",
        "FOUND.000/part1.jpg",
        "~$part1.jpg",
        "part1.jpg.filepart",
        "part1.jpg~",
    ],
)
def test_what_other_programs_leave_is_no_part_and_is_counted(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "part1.jpg", name)
    listing = find_images(tmp_path)
    assert [path.name for path in listing.files] == ["part1.jpg"]
    assert sum(each.count for each in listing.left_out) == 1
    assert str(listing).startswith("left out: 1 ")


def test_one_line_says_how_many_are_left_out_why_and_the_first_of_each(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.jfif", "c.AVIF", "d_mask.txt", ".x.png", "out/e.png", "f.gif")
    (tmp_path / "linked").symlink_to(tmp_path / "out", target_is_directory=True)
    os.mkfifo(tmp_path / "pipe.png")
    assert str(find_images(tmp_path)) == (
        "left out: 1 hidden (first: .x.png), "
        "3 images of a format that is not read (first: b.jfif), "
        "1 links to folders (first: linked), "
        "1 neither files nor folders (first: pipe.png), "
        "1 without the name of an image that can be read (first: d_mask.txt)"
    )


def test_a_link_to_itself_is_no_folder_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("loop.png", "loop"):
        (tmp_path / name).symlink_to(name)
    listing = find_images(tmp_path)
    assert listing.unreadable is None
    assert str(listing) == "left out: 2 neither files nor folders (first: loop)"


def test_a_long_path_is_said_in_short(tmp_path: Path) -> None:
    touch(tmp_path, f"{'d' * 100}/{'e' * 100}/.hidden.png")
    assert (
        str(find_images(tmp_path))
        == f"left out: 1 hidden (first: …ddddddd/{'e' * 100}/.hidden.png)"
    )


def test_a_linked_file_is_an_image(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    listing = find_images(tmp_path)
    assert [path.name for path in listing.files] == ["a.png", "b.png"]
    assert [each.first for each in listing.left_out] == ["gone.png"]


def test_a_folder_that_cannot_be_read_is_an_error_a_folder_in_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.png", "shut/b.png")
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not str(path).endswith("shut") and allowed(path, mode)
    )
    listing = find_images(tmp_path)
    assert [path.name for path in listing.files] == ["a.png"]
    assert listing.unreadable is not None
    assert (listing.unreadable.reason, listing.unreadable.count) == (UNREADABLE, 1)
    assert listing.unreadable.first == "shut: Permission denied"
    with pytest.raises(PermissionError):
        find_images(tmp_path / "shut")
    with pytest.raises(FileNotFoundError):
        find_images(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError):
        find_images(tmp_path / "a.png")
