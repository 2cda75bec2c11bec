"""Cameras' pixels become RGB, mono or raw Bayer of 8 bits: the door of the agent.

Formats have the names of GenICam's Pixel Format Naming Convention, older names beside them.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from engine.frame import Bayer, Pixels
from engine.image import demosaiced, eight_bits

Wide = npt.NDArray[np.uint16]

_PATTERNS: Final[dict[str, Bayer | None]] = {
    "Mono": None,
    "BayerRG": "bayer_rggb",
    "BayerGR": "bayer_grbg",
    "BayerGB": "bayer_gbrg",
    "BayerBG": "bayer_bggr",
}
_PACKINGS: Final = {
    "8": (8, 1, 1),
    "10": (10, 1, 2),
    "12": (12, 1, 2),
    "14": (14, 1, 2),
    "16": (16, 1, 2),
    "10p": (10, 4, 5),
    "12p": (12, 2, 3),
    "10Packed": (10, 2, 3),
    "12Packed": (12, 2, 3),
}
"""Significant bits, and how many pixels are in how many bytes."""
_COLOURS: Final = {
    "RGB8": (3, None),
    "RGB8Packed": (3, None),
    "BGR8": (3, "COLOR_BGR2RGB"),
    "BGR8Packed": (3, "COLOR_BGR2RGB"),
    "RGBa8": (4, "COLOR_RGBA2RGB"),
    "BGRa8": (4, "COLOR_BGRA2RGB"),
}
_CHROMA: Final = {
    "YUV422Packed": "UYVY",
    "YUV422_8_UYVY": "UYVY",
    "YUYVPacked": "YUYV",
    "YUV422_8": "YUYV",
    "YCbCr422_8": "YUYV",
    "YCbCr422_8_CbYCrY": "UYVY",
}
"""Half as much chroma as luma, in the full range of 8 bits."""
PIXEL_FORMATS: Final = (
    *(f"{pattern}{packing}" for pattern in _PATTERNS for packing in _PACKINGS),
    *_COLOURS,
    *_CHROMA,
)


def picture(
    raw: Pixels,
    pixel_format: str,
    *,
    width: int,
    height: int,
    stride: int | None = None,
    bits: int | None = None,
    keeps_bayer: bool = False,
) -> tuple[Pixels, Bayer | None]:
    """A copy of a camera's pixels as the agent has them, and their pattern if they are still raw.

    Args:
        raw: Bytes as they came; may be more than the picture.
        pixel_format: One of `PIXEL_FORMATS`.
        width: In pixels.
        height: In pixels.
        stride: Bytes from row to row; `None`: rows follow each other.
        bits: How many of the lower bits the picture's eight are scaled from; `None`: all of the
            format.
        keeps_bayer: Raw colour pixels stay as they are, only of 8 bits.

    Raises:
        ValueError: The format is unknown, or there are too few bytes for it.
    """
    if pixel_format in _COLOURS:
        return _colour(raw, pixel_format, width, height, stride), None
    if pixel_format in _CHROMA:
        return _from_chroma(raw, _CHROMA[pixel_format], width, height, stride), None
    for name, bayer in _PATTERNS.items():
        packing = _PACKINGS.get(pixel_format.removeprefix(name))
        if packing is None or not pixel_format.startswith(name):
            continue
        mono = _mono(raw, pixel_format.removeprefix(name), width, height, stride, bits)
        if bayer is None or keeps_bayer:
            return mono, bayer
        return demosaiced(mono, bayer), None
    raise ValueError(f"pixels of format {pixel_format} cannot be read")


def _mono(
    raw: Pixels, packing: str, width: int, height: int, stride: int | None, bits: int | None
) -> Pixels:
    significant, pixels, size = _PACKINGS[packing]
    if pixels == 1:
        rows = _rows(raw, width * size, height, stride)
        if size == 1:
            return np.array(rows)
        wide = np.ascontiguousarray(rows).view("<u2")
    else:
        # Packed pixels go on over the ends of rows.
        groups = math.ceil(width * height / pixels)
        packed = _enough(raw, groups * size)[: groups * size].reshape(groups, size)
        wide = _unpacked(packed, packing)[: width * height].reshape(height, width)
    return eight_bits(wide, bits or significant)


def _unpacked(packed: Pixels, packing: str) -> Wide:
    b = packed.T.astype(np.uint16)
    match packing:
        case "12p":
            found = [b[0] | (b[1] & 0xF) << 8, b[1] >> 4 | b[2] << 4]
        case "12Packed":
            found = [b[0] << 4 | b[1] & 0xF, b[2] << 4 | b[1] >> 4]
        case "10Packed":
            found = [b[0] << 2 | b[1] & 3, b[2] << 2 | b[1] >> 4 & 3]
        case _:
            found = [
                b[0] | (b[1] & 3) << 8,
                b[1] >> 2 | (b[2] & 0xF) << 6,
                b[2] >> 4 | (b[3] & 0x3F) << 4,
                b[3] >> 6 | b[4] << 2,
            ]
    return np.stack(found, axis=1).reshape(-1)


def _colour(raw: Pixels, pixel_format: str, width: int, height: int, stride: int | None) -> Pixels:
    channels, code = _COLOURS[pixel_format]
    rows = _rows(raw, width * channels, height, stride).reshape(height, width, channels)
    if code is None:
        return np.array(rows)
    import cv2

    return np.asarray(cv2.cvtColor(rows, getattr(cv2, code)), dtype=np.uint8)


def _from_chroma(raw: Pixels, order: str, width: int, height: int, stride: int | None) -> Pixels:
    """RGB by BT.601 in its full range; a chroma sample counts for both of its pixels."""
    import cv2

    if width % 2:
        raise ValueError(f"a picture of {width} pixels in a row has no half as much chroma")
    rows = _rows(raw, width * 2, height, stride).reshape(height, width, 2)
    luma = order.index("Y")
    seen = np.empty((height, width, 3), np.uint8)
    seen[..., 0] = rows[..., luma]
    for channel, first in ((1, 1), (2, 0)):  # OpenCV wants Y, Cr, Cb
        seen[..., channel] = np.repeat(rows[:, first::2, 1 - luma], 2, axis=1)
    return np.asarray(cv2.cvtColor(seen, cv2.COLOR_YCrCb2RGB), dtype=np.uint8)


def _rows(raw: Pixels, size: int, height: int, stride: int | None) -> Pixels:
    """`height` rows of `size` bytes, without what fills them up."""
    stride = stride or size
    if stride < size:
        raise ValueError(f"rows of {size} bytes cannot be {stride} bytes apart")
    whole = _enough(raw, (height - 1) * stride + size)
    return np.lib.stride_tricks.as_strided(whole, (height, size), (stride, 1), writeable=False)


def _enough(raw: Pixels, size: int) -> Pixels:
    if raw.size < size:
        raise ValueError(f"the picture takes {size} bytes, and only {raw.size} came")
    return raw
