import contextlib
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from engine.errors import ImageError
from engine.image import decode, decode_image, read_image
from tests.tiny_bundle import good_part


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decoded(image: Image.Image, form: str = "PNG", **options: Any) -> np.ndarray:
    return decode_image(encoded(image, form, **options), source="test")


COLOUR = Image.fromarray(good_part(0, width=31, height=17))


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_colour_comes_as_it_was(form: str) -> None:
    found = decoded(COLOUR, form)
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.asarray(COLOUR))


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_grey_stays_grey(form: str) -> None:
    grey = COLOUR.convert("L")
    assert np.array_equal(decoded(grey, form), np.asarray(grey))


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_lossy_forms_come_close(form: str) -> None:
    found = decoded(COLOUR, form, quality=95)
    assert found.shape == (17, 31, 3)
    assert np.abs(found.astype(int) - np.asarray(COLOUR)).mean() < 5


def test_alpha_is_ignored_not_blended() -> None:
    rgba = COLOUR.copy()
    rgba.putalpha(Image.new("L", COLOUR.size, 7))
    assert np.array_equal(decoded(rgba), np.asarray(COLOUR))
    grey = COLOUR.convert("L")
    la = Image.merge("LA", [grey, Image.new("L", grey.size, 0)])
    assert np.array_equal(decoded(la), np.asarray(grey))


def test_palettes_are_resolved() -> None:
    palette = COLOUR.quantize(16)
    assert np.array_equal(decoded(palette), np.asarray(palette.convert("RGB")))
    assert decoded(palette, transparency=0).shape == (17, 31, 3)


def test_one_bit_is_black_and_white() -> None:
    found = decoded(COLOUR.convert("1"))
    assert found.shape == (17, 31)
    assert set(np.unique(found)) <= {0, 255}


def test_sixteen_bits_are_scaled_from_their_full_range() -> None:
    wide = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    for form in ("PNG", "TIFF", "PPM"):
        found = decoded(Image.fromarray(wide), form)
        assert found.dtype == np.uint8
        assert found.tolist() == [[0, 0, 1, 1, 128, 255]]


def test_cmyk_becomes_rgb() -> None:
    cmyk = COLOUR.convert("CMYK")
    assert np.array_equal(decoded(cmyk, "TIFF"), np.asarray(cmyk.convert("RGB")))
    assert decoded(cmyk, "JPEG").shape == (17, 31, 3)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).swapaxes(0, 1)),
        (8, np.rot90),
    ],
)
def test_exif_rotation_is_applied(orientation: int, turn: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decoded(COLOUR, "PNG", exif=exif)
    assert np.array_equal(found, turn(np.asarray(COLOUR)))


@pytest.mark.parametrize("size", [(1, 1), (1, 997), (997, 1), (3, 5)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    assert decoded(Image.new("RGB", size)).shape == (size[1], size[0], 3)


def test_pixels_may_be_written_to() -> None:
    for image in (COLOUR, COLOUR.convert("L"), Image.fromarray(np.zeros((2, 2), np.uint16))):
        decoded(image)[0, 0] = 1


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(ImageError, match="no defined range"):
        decoded(COLOUR.convert("F"), "TIFF")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"part 17 is fine\n", "not an image"),
        (encoded(COLOUR)[:8], "not an image"),
        (encoded(COLOUR)[:-40], "is damaged"),
        (encoded(COLOUR, "JPEG")[:-200], "is damaged"),
        (encoded(COLOUR, "BMP")[:-30], "is damaged"),
        (encoded(COLOUR, "TIFF")[:60], "is damaged|not an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is damaged|not an image"),
    ],
)
def test_what_is_no_whole_image_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        decode_image(data, source="camera 1")
    assert str(caught.value).startswith("camera 1: ")


def bomb(width: int, height: int) -> bytes:
    """A PNG header that promises `width` × `height` pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, body, b"IEND")
    )


@pytest.mark.parametrize("size", [(11_000, 10_000), (50_000, 50_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_refused_before_decoding(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="pixels"):
        decode_image(bomb(*size), source="bomb")


def test_the_limit_is_the_callers() -> None:
    data = encoded(Image.new("L", (100, 100)))
    assert decode_image(data, source="x", max_pixels=10_000).shape == (100, 100)
    with pytest.raises(ImageError, match="100×100 pixels are more than the 9999 allowed"):
        decode_image(data, source="x", max_pixels=9_999)


@given(cut=st.integers(0, 400), at=st.integers(0, 400), byte=st.integers(0, 255))
@example(cut=400, at=10, byte=0)
def test_damaged_bytes_give_pixels_or_an_image_error(cut: int, at: int, byte: int) -> None:
    for form in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"):
        data = bytearray(encoded(COLOUR.crop((0, 0, 8, 8)), form))
        data[at % len(data)] = byte
        try:
            found = decode_image(bytes(data[: max(0, len(data) - cut // 8)]), source="x")
        except ImageError:
            continue
        assert found.dtype == np.uint8
        assert found.ndim in {2, 3}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png: cannot be read"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match=r"folder\.png: cannot be read"):
        read_image(tmp_path / "folder.png")


def test_a_pipe_and_a_device_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(ImageError, match="not a regular file"):
            read_image(path)


def test_a_file_with_more_bytes_than_its_pixels_can_have_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(50_000_000_000)
    with pytest.raises(ImageError, match="50000 MB, more than 100000000 pixels can take"):
        read_image(tmp_path / "sparse.png")


@pytest.mark.parametrize("form", ["EPS", "GIF", "ICO", "PDF", "TGA", "PCX", "SGI"])
def test_other_formats_are_refused_by_content(form: str) -> None:
    with pytest.raises(ImageError, match=r"known format \(BMP, JPEG, PNG, PPM, TIFF, WEBP\)"):
        decoded(COLOUR, form)


DAMAGE = {
    "a byte is another": lambda data, at: data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :],
    "bytes are missing": lambda data, at: data[:at] + data[at + 60 :],
    "bytes are noise": lambda data, at: data[:at] + os.urandom(60) + data[at + 60 :],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_png_is_refused(damage: str) -> None:
    data = encoded(COLOUR)
    for at in range(60, len(data) - 80, 97):
        with pytest.raises(ImageError, match="is damaged"):
            decode_image(DAMAGE[damage](data, at), source="x")


def test_a_jpeg_that_its_decoder_warns_of_is_refused_unless_that_is_accepted() -> None:
    data = encoded(Image.fromarray(good_part(1, width=320, height=240)), "JPEG", quality=90)
    damaged = [DAMAGE["bytes are missing"](data, at) for at in range(800, len(data) - 80, 211)]
    refused = []
    for each in damaged:
        try:
            decode(each, source="x")
        except ImageError as error:
            refused.append(str(error))
    assert len(refused) > 0.7 * len(damaged)
    assert all("is damaged (" in reason for reason in refused)
    shown = []
    for each in damaged:
        with contextlib.suppress(ImageError):
            shown.append(decode(each, source="x", accept_damaged=True).pixels.shape)
    assert len(shown) > 0.9 * len(damaged)
    assert set(shown) == {(240, 320, 3)}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_half_a_file_is_refused_also_where_damage_is_accepted(form: str) -> None:
    data = encoded(COLOUR, form)
    for accept in (False, True):
        with pytest.raises(ImageError):
            decode(data[: len(data) // 2], source="x", accept_damaged=accept)


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_a_jpeg_inside_another_form_is_checked_as_well(form: str) -> None:
    part = Image.fromarray(good_part(1, width=320, height=240))
    options = {"compression": "jpeg"} if form == "TIFF" else {}
    data = encoded(part if form == "TIFF" else part.convert("CMYK"), form, **options)
    assert decode_image(data, source="x").shape == (240, 320, 3)
    start = data.index(b"\xff\xda")
    cut = data[: start + 500] + bytes(1000) + data[start + 1500 :]
    with pytest.raises(ImageError, match="is damaged"):
        decode(cut, source="x")
    assert decode(cut, source="x", accept_damaged=True).pixels.shape == (240, 320, 3)


def test_further_pictures_in_a_file_are_said() -> None:
    for form in ("TIFF", "PNG", "WEBP"):
        data = encoded(COLOUR, form, save_all=True, append_images=[COLOUR.rotate(90)])
        decoded = decode(data, source="x")
        assert decoded.note is not None, form
        assert "only the first is inspected" in decoded.note
        assert decode(encoded(COLOUR, form), source="x").note is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(Image.fromarray(np.ones((8, 8), np.int32)), "TIFF"), "has pixels of 32 bits"),
        (cv2.imencode(".tiff", np.ones((8, 8), np.int16))[1].tobytes(), "below zero"),
        (cv2.imencode(".tiff", np.ones((8, 8, 3), np.float32))[1].tobytes(), "not of 8 or 16 bits"),
        (encoded(COLOUR.convert("1"), "TIFF", compression="group4"), "has fax compression"),
    ],
)
def test_pixels_that_would_lose_their_levels_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as error:
        decode(data, source="x")
    assert "is damaged" not in error.value.reason


def test_jpegs_have_the_pixels_that_pillow_gives() -> None:
    for mode in ("L", "RGB"):
        for options in ({"quality": 60}, {"quality": 95, "subsampling": 0}, {"progressive": True}):
            data = encoded(COLOUR.convert(mode), "JPEG", **options)
            assert np.array_equal(
                decode_image(data, source="x"), np.asarray(Image.open(io.BytesIO(data)))
            )


WIDE = np.linspace(0, 4095, 17 * 31).reshape(17, 31).astype(np.uint16)
"""Twelve bits in sixteen."""


def with_significant(data: bytes, bits: int) -> bytes:
    """A PNG that says how many of its bits are significant."""
    body = b"sBIT" + bytes([bits])
    chunk = struct.pack(">I", 1) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + chunk + data[33:]


def test_twelve_bits_in_sixteen_keep_their_grey_levels_where_they_are_known() -> None:
    wanted = (WIDE.astype(int) * 255 + 2047) // 4095
    plain = encoded(Image.fromarray(WIDE))
    tiff = encoded(Image.fromarray(WIDE), "TIFF", tiffinfo={281: 4095})
    assert np.array_equal(decode_image(plain, source="x", bits=12), wanted)
    assert np.array_equal(decode_image(with_significant(plain, 12), source="x"), wanted)
    assert np.array_equal(decode_image(tiff, source="x"), wanted)


def test_twelve_upper_bits_are_taken_as_they_stand() -> None:
    upper = encoded(Image.fromarray(WIDE << 4))
    found = decode_image(with_significant(upper, 12), source="x")
    assert np.array_equal(found, decode_image(upper, source="x"))


def test_colours_of_twelve_bits_in_sixteen_keep_their_levels() -> None:
    wide = np.stack([WIDE, WIDE[::-1], WIDE // 2], axis=2)
    data = cv2.imencode(".png", wide[..., ::-1])[1].tobytes()
    wanted = (wide.astype(int) * 255 + 2047) // 4095
    assert np.array_equal(decode_image(data, source="x", bits=12), wanted)
    assert decode(data, source="x").note is not None


def test_empty_upper_bits_are_said_and_values_beyond_the_bits_are_refused() -> None:
    decoded = decode(encoded(Image.fromarray(WIDE)), source="x")
    assert decoded.note is not None
    assert "uses more than 12" in decoded.note
    assert "bits: 12" in decoded.note
    assert decode(encoded(Image.fromarray(WIDE << 4)), source="x").note is None
    eight = decode(encoded(Image.fromarray(WIDE >> 4)), source="x")
    assert eight.note is not None
    assert "bits: 8" in eight.note
    with pytest.raises(ImageError, match="has a pixel of 4095, which is more than 10 bits hold"):
        decode(encoded(Image.fromarray(WIDE)), source="x", bits=10)
