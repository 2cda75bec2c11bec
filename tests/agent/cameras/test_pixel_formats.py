"""Bytes of each pixel format, made here the other way round, become the pixels they came from."""

import cv2
import numpy as np
import pytest

from agent.camera_child.pfnc import _NAMES
from agent.cameras.pixel_formats import PIXEL_FORMATS, picture
from engine.frame import Frame
from engine.image import _scale, eight_bits, visible

_WIDE = np.random.default_rng(0).integers(0, 1 << 12, (6, 10), np.uint16)


def seen(raw, pixel_format, width=10, height=6, **how):
    flat = np.frombuffer(raw.tobytes() + bytes(7), np.uint8)  # a slot is larger than its picture
    return picture(flat, pixel_format, width=width, height=height, **how)


def expected(wide, bits):
    return _scale(bits)[wide]


def packed_bits(wide, bits):
    """PFNC's `p` formats: all bits one after another, the lowest first."""
    flat = (wide.reshape(-1, 1) >> np.arange(bits) & 1).astype(np.uint8).reshape(-1)
    return np.packbits(flat, bitorder="little")


def packed_gige(wide, bits):
    """GigE Vision's own: the upper eight bits of two pixels around a byte with the others."""
    low = bits - 8
    first, second = wide.reshape(-1, 2).T
    rest = (first & (1 << low) - 1) | (second & (1 << low) - 1) << 4
    return np.stack([first >> low, rest, second >> low], axis=1).astype(np.uint8)


@pytest.mark.parametrize(
    ("pixel_format", "raw", "bits"),
    [
        ("Mono10", _WIDE & 1023, 10),
        ("Mono12", _WIDE, 12),
        ("Mono16", _WIDE * 16, 16),
        ("Mono10p", packed_bits(_WIDE & 1023, 10), 10),
        ("Mono12p", packed_bits(_WIDE, 12), 12),
        ("Mono10Packed", packed_gige(_WIDE & 1023, 10), 10),
        ("Mono12Packed", packed_gige(_WIDE, 12), 12),
    ],
)
def test_deep_grey_becomes_its_eight_bits(pixel_format, raw, bits):
    wide = {10: _WIDE & 1023, 12: _WIDE, 16: _WIDE * 16}[bits]
    pixels, bayer = seen(raw, pixel_format)
    assert np.array_equal(pixels, expected(wide, bits))
    assert bayer is None


def test_bits_that_do_not_count_are_white_where_they_are_used():
    pixels, _ = seen(np.array([[0, 255, 1023, 4095]], np.uint16), "Mono12", 4, 1, bits=10)
    assert pixels.tolist() == [[0, 64, 255, 255]]


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_every_value_is_scaled_as_in_a_file(bits):
    values = np.arange(1 << 16, dtype=np.uint16)
    assert np.array_equal(eight_bits(values, bits).reshape(-1), _scale(bits)[values])


def test_grey_and_colour_are_copied_without_what_fills_their_rows():
    grey = np.arange(64, dtype=np.uint8).reshape(4, 16)
    assert np.array_equal(seen(grey, "Mono8", 10, 4, stride=16)[0], grey[:, :10])
    colour = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    assert np.array_equal(seen(colour, "RGB8", 6, 4)[0], colour)
    assert np.array_equal(seen(colour[..., ::-1], "BGR8", 6, 4)[0], colour)
    alpha = np.dstack([colour, colour[..., :1]])
    assert np.array_equal(seen(alpha, "RGBa8", 6, 4)[0], colour)


@pytest.mark.parametrize(
    ("name", "form", "code"),
    [
        ("RG", "bayer_rggb", cv2.COLOR_BayerRGGB2RGB),
        ("GR", "bayer_grbg", cv2.COLOR_BayerGRBG2RGB),
        ("GB", "bayer_gbrg", cv2.COLOR_BayerGBRG2RGB),
        ("BG", "bayer_bggr", cv2.COLOR_BayerBGGR2RGB),
    ],
)
def test_raw_colour_is_converted_or_stays_as_it_is(name, form, code):
    raw = (_WIDE & 255).astype(np.uint8)
    colour = cv2.cvtColor(raw, code)
    assert np.array_equal(seen(raw, f"Bayer{name}8")[0], colour)
    kept, bayer = seen(raw, f"Bayer{name}8", keeps_bayer=True)
    assert np.array_equal(kept, raw)
    assert bayer == form
    frame = Frame(pixels=kept, number=0, captured_ns=0, bayer=bayer)
    assert np.array_equal(visible(frame), colour)
    deep, bayer = seen(packed_bits(_WIDE, 12), f"Bayer{name}12p", keeps_bayer=True)
    assert np.array_equal(deep, expected(_WIDE, 12))
    assert bayer == form


@pytest.mark.parametrize("pixel_format", ["YUV422_8", "YUV422_8_UYVY", "YCbCr422_8"])
def test_colour_with_half_the_chroma_is_that_colour(pixel_format):
    colour = np.repeat(np.random.default_rng(1).integers(40, 200, (6, 5, 3), np.uint8), 2, axis=1)
    luma, cr, cb = np.moveaxis(cv2.cvtColor(colour, cv2.COLOR_RGB2YCrCb), 2, 0)
    chroma = np.where(np.arange(10) % 2, cr, cb).astype(np.uint8)
    order = [chroma, luma] if "UYVY" in pixel_format else [luma, chroma]
    pixels, _ = seen(np.stack(order, axis=2), pixel_format)
    assert np.abs(pixels.astype(int) - colour).max() <= 2


@pytest.mark.parametrize("pixel_format", PIXEL_FORMATS)
def test_a_picture_that_came_short_is_refused(pixel_format):
    with pytest.raises(ValueError, match="only 7 came"):
        seen(np.empty(0, np.uint8), pixel_format)


def test_every_number_of_the_naming_convention_is_a_format_that_is_read():
    assert set(_NAMES.values()) <= set(PIXEL_FORMATS)
