"""Pictures for people: a frame under its heat map, with its box, as JPEG."""

import base64
import unicodedata
from typing import Final

import cv2
import numpy as np

from engine.errors import ImageError
from engine.frame import Box, Inspection, Pixels

MAX_SIDE: Final = 640
"""Annotated pictures are reduced to this, in pixels: enough to see, quick to draw and send."""
_JPEG_START: Final = b"\xff\xd8"
_JPEG_COMMENT: Final = b"\xff\xfe"
_JPEG_MAX_SIDE: Final = 65_500
"""The encoder takes no longer one."""

_NG_COLOUR: Final = (255, 80, 40)
_OK_COLOUR: Final = (60, 200, 120)
_BOX_COLOUR: Final = (255, 255, 255)
_TEXT_COLOUR: Final = (255, 255, 255)
_DIMMED: Final = 0.4
"""How bright the frame stays where pass 1 attends to nothing."""
_HEAT_SHARE: Final = 0.65
"""How much of the frame the hottest colour may cover; the part must stay visible below it."""
_FONT: Final = cv2.FONT_HERSHEY_SIMPLEX
_TEXT_HEIGHT: Final = 12
"""Of a caption's capital letters, in pixels."""


def annotated(
    pixels: Pixels, inspection: Inspection, threshold: float, *, max_side: int = MAX_SIDE
) -> Pixels:
    """The frame with its heat map and, when pass 2 zoomed in, the attention box.

    The box is red if the score is above the threshold, else green; `heatmap` says what the colours
    mean.

    Args:
        pixels: The inspected frame, uint8, `(H, W)` or `(H, W, 3)` RGB.
        inspection: What was found in it.
        threshold: Where the verdict changes.
        max_side: The longest side of the picture, in pixels.

    Returns:
        uint8 RGB, `(h, w, 3)`.
    """
    picture = heatmap(reduced(pixels, max_side), inspection, threshold)
    return _boxed(picture, pixels, inspection, _verdict_colour(inspection, threshold))


def boxed(
    pixels: Pixels, inspection: Inspection, threshold: float, *, max_side: int = MAX_SIDE
) -> Pixels:
    """As `annotated`, with the same arguments and without the heat map."""
    picture = _rgb(reduced(pixels, max_side)).copy()
    return _boxed(picture, pixels, inspection, _verdict_colour(inspection, threshold))


def framed(pixels: Pixels, box: Box | None, *, max_side: int = MAX_SIDE) -> Pixels:
    """The frame `pixels` with `box` drawn in, if there is one; shapes are those of `annotated`."""
    picture = _rgb(reduced(pixels, max_side)).copy()
    return picture if box is None else _drawn(picture, pixels, box, _BOX_COLOUR)


def attended(pixels: Pixels, inspection: Inspection, *, max_side: int = MAX_SIDE) -> Pixels:
    """The frame as pass 1 attends to it and, when pass 2 zoomed in, the box that follows from it.

    Shapes are those of `annotated`. The frame is brightest where attention is highest in this
    frame, and dark where there is none: the box is cut relative to the highest, so each picture has
    its own scale. No colours, since attention is no finding: good parts have it too.
    """
    small = _rgb(reduced(pixels, max_side))
    attention = np.nan_to_num(inspection.attention, posinf=0.0).clip(0)
    share = attention / max(float(attention.max()), 1e-30)
    height, width = small.shape[:2]
    levels = cv2.resize(share.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    brightness = _DIMMED + (1 - _DIMMED) * levels
    picture = cv2.blendLinear(small, np.zeros_like(small), brightness, 1 - brightness)
    return _boxed(np.asarray(picture, dtype=np.uint8), pixels, inspection, _BOX_COLOUR)


def captioned(picture: Pixels, *texts: str) -> Pixels:
    """`picture` with `texts` in a strip below it, side by side where there is room.

    The letters are those of ASCII: of others the accents are left out, or a question mark stands.
    A text that is wider than the picture is cut.
    """
    picture = _rgb(picture)
    scale = cv2.getFontScaleFromHeight(_FONT, _TEXT_HEIGHT)
    gap = _TEXT_HEIGHT // 2

    def wide(text: str) -> int:
        return int(cv2.getTextSize(text, _FONT, scale, 1)[0][0])

    across, row, places = gap, 0, []
    for text in map(_ascii, texts):
        if across > gap and across + wide(text) > picture.shape[1] - gap:
            across, row = gap, row + 1
        places.append((text, across, row))
        across += wide(text) + 3 * gap
    strip = np.zeros((2 * _TEXT_HEIGHT * (row + 1), picture.shape[1], 3), np.uint8)
    for text, left, line in places:
        base = 2 * _TEXT_HEIGHT * (line + 1) - gap
        cv2.putText(strip, text, (left, base), _FONT, scale, _TEXT_COLOUR, 1, cv2.LINE_AA)
    return np.concatenate([picture, strip])


def heatmap(pixels: Pixels, inspection: Inspection, threshold: float) -> Pixels:
    """`pixels` under the heat of pass 1's score map: `(H, W, 3)` uint8 RGB, same size.

    `pixels` shows the whole inspected frame, at any size. The scale is absolute, so pictures
    compare: a patch at three quarters of the threshold or below adds no colour, one at twice the
    threshold is the hottest. Patches count by magnitude, as in the score (docs/method.md, Scores).
    """
    height, width = pixels.shape[:2]
    magnitudes = np.abs(inspection.score_map.astype(np.float64))
    if inspection.map_threshold is not None:
        threshold = inspection.map_threshold
    heat = (magnitudes / max(threshold, 1e-30) - 0.75) / 1.25
    heat = np.nan_to_num(heat.clip(0, 1), nan=1.0).astype(np.float32)
    heat = cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)
    picture = pixels.copy() if pixels.ndim == 3 else _rgb(pixels)
    left, top, across, down = cv2.boundingRect((heat > 0).astype(np.uint8))
    if across:  # usually only a small region is above the lowest heat
        here = slice(top, top + down), slice(left, left + across)
        # From yellow to dark red: blue and green would speak of cold and of good.
        levels = cv2.convertScaleAbs(heat[here], alpha=90, beta=155)
        colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
        cover = _HEAT_SHARE * np.sqrt(heat[here])
        picture[here] = cv2.blendLinear(picture[here], colours, 1 - cover, cover)
    return picture


def reduced(pixels: Pixels, max_side: int) -> Pixels:
    """`pixels` itself if no side is longer than `max_side`, else scaled down to that, by area."""
    height, width = pixels.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def jpeg(pixels: Pixels, *, max_bytes: int = 65_536, quality: int = 85) -> bytes:
    """`pixels` as one JPEG file of at most `max_bytes`; less quality first, then fewer pixels.

    `pixels` is `(H, W)` or `(H, W, 3)` uint8 RGB. Raises `ImageError` when even the smallest
    picture is larger than `max_bytes`.
    """
    pixels = reduced(pixels, _JPEG_MAX_SIDE)
    while True:
        for attempt in (quality, quality * 3 // 4, quality // 2):
            data = _encoded(pixels, attempt)
            if len(data) <= max_bytes:
                return data
        side = max(pixels.shape[:2])
        if side <= 16:
            raise ImageError("JPEG picture", f"does not fit into {max_bytes} bytes")
        pixels = reduced(pixels, side * 3 // 4)


def data_uri(pixels: Pixels, *, max_bytes: int = 65_536, quality: int = 85) -> str:
    """`pixels` as a `data:` URI for a page that needs no other file; see `jpeg`."""
    data = jpeg(pixels, max_bytes=max_bytes, quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")


def _verdict_colour(inspection: Inspection, threshold: float) -> tuple[int, int, int]:
    return _NG_COLOUR if inspection.score > threshold else _OK_COLOUR


def _boxed(
    picture: Pixels, pixels: Pixels, inspection: Inspection, colour: tuple[int, int, int]
) -> Pixels:
    """`picture`, which shows the frame `pixels`, with its regions and pass 2's box drawn in."""
    for region in inspection.regions:
        if region.corners:
            shown = region.scaled(of=Box.around(pixels), to=Box.around(picture))
            places = [np.round(np.array(shown.corners)).astype(np.int32)]
            cv2.polylines(picture, places, True, (0, 0, 0), 3)
            cv2.polylines(picture, places, True, _BOX_COLOUR, 1)
        else:
            picture = _drawn(picture, pixels, region.box, _BOX_COLOUR, width=1)
    return _drawn(picture, pixels, inspection.box, colour) if inspection.zoomed else picture


def _drawn(
    picture: Pixels,
    pixels: Pixels,
    box: Box,
    colour: tuple[int, int, int],
    *,
    width: int | None = None,
) -> Pixels:
    box = box.scaled(of=Box.around(pixels), to=Box.around(picture))
    width = width or 1 + max(picture.shape) // 250
    corners = (box.left, box.top), (box.right - 1, box.bottom - 1)
    # A dark line below the bright one is seen on any background.
    cv2.rectangle(picture, *corners, (0, 0, 0), width + 2)
    cv2.rectangle(picture, *corners, colour, width)
    return picture


def _ascii(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text)
    plain = "".join(one for one in letters if not unicodedata.combining(one))
    return "".join(one if " " <= one <= "~" else "?" for one in plain)


def _rgb(pixels: Pixels) -> Pixels:
    return pixels if pixels.ndim == 3 else cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB).astype(np.uint8)


def _encoded(pixels: Pixels, quality: int) -> bytes:
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR).astype(np.uint8)
    done, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "OpenCV encodes every uint8 image of one or three channels"
    return data.tobytes()


def with_comment(jpeg: bytes, comment: str) -> bytes:
    """The same JPEG with a comment as its first segment."""
    if not jpeg.startswith(_JPEG_START):
        raise ValueError("not a JPEG")
    text = comment.encode()
    segment = _JPEG_COMMENT + (len(text) + 2).to_bytes(2, "big") + text
    return _JPEG_START + segment + jpeg[len(_JPEG_START) :]


def comment_of(jpeg: bytes) -> str | None:
    """The comment that `with_comment` put first, or `None`."""
    head = _JPEG_START + _JPEG_COMMENT
    if not jpeg.startswith(head):
        return None
    end = len(head) + int.from_bytes(jpeg[len(head) : len(head) + 2], "big")
    return jpeg[len(head) + 2 : end].decode(errors="replace")
