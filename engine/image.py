"""Image files and encoded bytes → `Pixels`, whatever form they come in.

Bytes and pixels are bounded before anything is decoded, and only the formats in `FORMATS` are, by
their content: a file's name says nothing.
"""

import io
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from simplejpeg import decode_jpeg

from engine.errors import ImageError
from engine.frame import Bayer, Frame, Pixels
from engine.regular_file import open_regular

MAX_PIXELS: Final = 100_000_000
"""Images larger than this are refused before they are decoded (decompression bombs)."""
FORMATS: Final = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_LOG: Final = logging.getLogger("atac_agent.image")
_CHECKED: Final = frozenset({"JPEG", "MPO", "PNG"})
_BYTES_PER_PIXEL: Final = 6
"""No format needs more than an uncompressed one with three channels of 16 bits."""
_TIFF: Final = (b"II*\0", b"MM\0*")
_CHUNK: Final = 4 << 20
_STRIP: Final = 2_000_000  # pixels that are converted at once
_SIXTEEN_BIT: Final = {"I", "I;16", "I;16B", "I;16L", "I;16N"}
_ORIENTATION: Final = 0x0112
_BITS_PER_SAMPLE: Final = 258
_MAX_SAMPLE_VALUES: Final = (281, 341)
_SAMPLE_FORMAT: Final = 339
_COMPRESSION: Final = 259
_FAX: Final = frozenset({2, 3, 4})
_JPEG: Final = 7
_JPEG_TABLES: Final = 347
_STRIPS: Final = ((273, 279), (324, 325))
"""Where strips, or tiles, lie and how many bytes they have."""
_UPRIGHT: Final[dict[int, Callable[[Pixels], Pixels]]] = {
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.swapaxes(0, 1),
    6: lambda seen: np.rot90(seen, -1),
    7: lambda seen: np.rot90(seen, 2).swapaxes(0, 1),
    8: np.rot90,
}
"""By EXIF's orientation."""
_said: set[str] = set()
"""Notes that were logged."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoded:
    """One image; `note` says in one line what its sender may want to know.

    `is_checked`: half of such a file would not have been decoded.
    """

    pixels: Pixels
    note: str | None = None
    is_checked: bool = False


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS, bits: int | None = None) -> Pixels:
    """The upright image in file `path`; see `decode_image`."""
    data, _ = read_file(path, max_pixels=max_pixels)
    return decode_image(data, source=str(path), max_pixels=max_pixels, bits=bits)


def read_file(
    path: Path, *, max_pixels: int = MAX_PIXELS, progress: Callable[[], None] = lambda: None
) -> tuple[bytes, os.stat_result]:
    """The bytes of a regular file and its status when they were read.

    Args:
        path: The file.
        max_pixels: Files with more bytes than an image of this size can have are refused.
        progress: Called after each piece, as a slow disk may take long.

    Returns:
        The bytes, and `os.fstat` of the file after the last of them.

    Raises:
        ImageError: There is no such file, it cannot be read, or it is too large.
    """
    source, max_bytes = str(path), _BYTES_PER_PIXEL * max_pixels + 1_000_000
    pieces = []
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            if status.st_size > max_bytes:
                size = f"{status.st_size / 1e6:.0f} MB"
                raise ImageError(source, f"has {size}, more than {max_pixels} pixels can take")
            left = max_bytes
            while left > 0 and (piece := file.read(min(_CHUNK, left))):
                pieces.append(piece)
                left -= len(piece)
                progress()
            return b"".join(pieces), os.fstat(file.fileno())
    except OSError as error:
        raise ImageError(source, f"cannot be read ({error.strerror})") from error
    except ValueError as error:  # a name that no file can have
        raise ImageError(source, f"cannot be read ({error})") from error


def decode_image(
    data: bytes, *, source: str, max_pixels: int = MAX_PIXELS, bits: int | None = None
) -> Pixels:
    """Decode one image; a note about it is logged once.

    Args:
        data: The bytes of a file in one of `FORMATS`.
        source: What the image is called in errors.
        max_pixels: A larger image is refused before it is decoded.
        bits: How many of 16 bits a pixel has; without it the file's metadata count, else 16.

    Returns:
        `(H, W)` uint8 for grey images, `(H, W, 3)` uint8 RGB for all others. EXIF rotation is
        applied, palettes are resolved, alpha is ignored, 16 bits are scaled from their full range.

    Raises:
        ImageError: For anything else, damaged images included.
    """
    decoded = decode(data, source=source, max_pixels=max_pixels, bits=bits)
    if decoded.note is not None:
        _say_once(source, decoded.note)
    return decoded.pixels


def decode(
    data: bytes,
    *,
    source: str,
    max_pixels: int = MAX_PIXELS,
    bits: int | None = None,
    accept_damaged: bool = False,
) -> Decoded:
    """As `decode_image`, with the note.

    Args:
        data: The bytes of a file in one of `FORMATS`.
        source: What the image is called in errors.
        max_pixels: A larger image is refused before it is decoded.
        bits: How many of 16 bits a pixel has; without it the file's metadata count, else 16.
        accept_damaged: Take what the decoder makes of damaged data that it only warns of.

    Returns:
        The pixels and what is to be said of them.

    Raises:
        ImageError: The image cannot be used.
    """
    if not data:
        raise ImageError(source, "is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged metadata, which matters to nobody here, and of many pixels,
            # which are counted below.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _refuse_larger(image, max_pixels, source)
                return _decoded(image, data, bits, accept_damaged=accept_damaged)
    except ImageError:
        raise
    except _UnfitError as error:
        raise ImageError(source, str(error)) from error
    except UnidentifiedImageError as error:
        if data.startswith(_TIFF):
            reason = "is not an image that can be read: a damaged TIFF, or not of 8 or 16 bits"
            raise ImageError(source, reason) from error
        known = ", ".join(FORMATS)
        raise ImageError(source, f"is not an image in a known format ({known})") from error
    except Image.DecompressionBombError as error:
        raise ImageError(source, f"more than {max_pixels} pixels: refused") from error
    except MemoryError as error:
        raise ImageError(source, "needs more memory to be decoded than it may have") from error
    except Exception as error:
        # Whatever the decoders raise for damaged data, struct.error included.
        raise ImageError(source, f"is damaged ({error})") from error


class _UnfitError(ValueError):
    """A whole image whose pixels cannot be used; `str` says why, as "has …" does."""


def _say_once(source: str, note: str) -> None:
    if note not in _said:
        _said.add(note)
        _LOG.warning("%s: %s", source, note)


def _refuse_larger(image: Image.Image, max_pixels: int, source: str) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(source, f"{width}×{height} pixels are more than the {max_pixels} allowed")


def _decoded(image: Image.Image, data: bytes, bits: int | None, *, accept_damaged: bool) -> Decoded:
    significant = 16
    if image.format == "PNG":
        significant = _checked_png(data, accept_damaged=accept_damaged)
    elif image.format == "TIFF":
        significant = _significant_in_tiff(image)
        if not accept_damaged:
            _check_tiff(image, data)
    if image.format in {"JPEG", "MPO"} and image.mode in {"L", "RGB"} and not accept_damaged:
        # Pillow does not tell of warnings here either, and is slower; the pixels are equal.
        seen = decode_jpeg(data, "GRAY" if image.mode == "L" else "RGB")
        decoded = Decoded(pixels=seen[..., 0] if image.mode == "L" else seen)
    elif (bits is not None or significant < 16) and _is_deep_colour(image, data):
        decoded = _narrowed(_deep_colour(data), bits, significant)
    else:
        if image.format in {"JPEG", "MPO"} and not accept_damaged:
            decode_jpeg(data, "CMYK")  # Pillow does not tell what the decoder has warned of
        image.load()
        decoded = _to_pixels(image, bits, significant, is_deep=_is_deep_colour(image, data))
    turned = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1), np.asarray)(decoded.pixels)
    several = "holds several pictures, of which only the first is inspected"
    return Decoded(
        pixels=np.require(turned, requirements=["C", "W"]),
        note=several if getattr(image, "is_animated", False) else decoded.note,
        is_checked=image.format in _CHECKED,
    )


def _checked_png(data: bytes, *, accept_damaged: bool) -> int:
    """How many bits of a sample are significant; raises `ValueError` where a check sum is wrong."""
    view, at, significant = memoryview(data), 8, 16
    while at + 12 <= len(view):
        length, kind = struct.unpack_from(">I4s", view, at)
        end = at + 12 + length
        if end > len(view):
            break
        (wanted,) = struct.unpack_from(">I", view, end - 4)
        if zlib.crc32(view[at + 4 : end - 4]) != wanted and not accept_damaged:
            raise ValueError(f"the check sum of {kind.decode('latin-1')} is wrong")
        if kind == b"sBIT" and length:
            significant = int(max(view[at + 8 : at + 8 + min(length, 3)]))
        if kind == b"IEND":
            return significant
        at = end
    raise ValueError("it is cut short")


def _significant_in_tiff(image: Image.Image) -> int:
    tags: Any = getattr(image, "tag_v2", {})
    stored = tags.get(_BITS_PER_SAMPLE, (16,))
    if image.mode == "I" and (max(stored) > 16 or set(tags.get(_SAMPLE_FORMAT, ())) - {1}):
        raise _UnfitError("has pixels of 32 bits, or below zero, of no defined range; save 16 bits")
    largest = next((tags[tag] for tag in _MAX_SAMPLE_VALUES if tag in tags), (65_535,))
    largest = max(largest) if isinstance(largest, tuple) else largest
    return int(min(max(stored), max(int(largest), 1).bit_length()))


def _check_tiff(image: Image.Image, data: bytes) -> None:
    """Raises `ValueError` for damage of which Pillow does not tell."""
    tags: Any = getattr(image, "tag_v2", {})
    if tags.get(_COMPRESSION) in _FAX:
        raise _UnfitError("has fax compression, which shows no damage; save it with another one")
    if tags.get(_COMPRESSION) == _JPEG:
        tables = tags.get(_JPEG_TABLES, b"")
        for places, counts in _STRIPS:
            for at, count in zip(tags.get(places, ()), tags.get(counts, ()), strict=True):
                strip = data[at : at + count]
                decode_jpeg(tables[:-2] + strip[2:] if tables else strip, "GRAY")


def _is_deep_colour(image: Image.Image, data: bytes) -> bool:
    """Whether the file has 16 bits a channel where Pillow gives eight."""
    if image.format == "PNG":
        return data[24] == 16 and data[25] in {2, 6}
    if image.format == "TIFF":
        stored = image.tag_v2.get(_BITS_PER_SAMPLE, ())  # type: ignore[attr-defined]
        return len(stored) > 2 and stored[0] == 16
    return False


def _deep_colour(data: bytes) -> npt.NDArray[np.uint16]:
    import cv2

    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16:
        raise ValueError("its 16-bit colours cannot be decoded")
    return np.asarray(found[..., 2::-1], dtype=np.uint16)


def _to_pixels(image: Image.Image, bits: int | None, significant: int, *, is_deep: bool) -> Decoded:
    if image.mode in _SIXTEEN_BIT:
        wide = np.empty((image.height, image.width), np.uint16)
        for rows, strip in _strips(image):
            wide[rows] = np.asarray(strip).clip(0, 65_535)
        return _narrowed(wide, bits, significant)
    if image.mode == "F":
        raise _UnfitError("has floating-point pixels of no defined range; save 8 or 16 bits")
    mode = "L" if image.mode in {"L", "1", "LA"} else "RGB"
    shape = (image.height, image.width) if mode == "L" else (image.height, image.width, 3)
    pixels = np.empty(shape, np.uint8)
    for rows, strip in _strips(image):
        pixels[rows] = np.asarray(strip if strip.mode == mode else strip.convert(mode))
    note = _note(int(pixels.max()).bit_length() + 8) if is_deep else None
    return Decoded(pixels=pixels, note=note)


def _strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """The image in pieces, so that converting it does not take its memory again."""
    rows = max(1, _STRIP // image.width)
    if rows >= image.height:
        yield slice(None), image
        return
    for top in range(0, image.height, rows):
        below = min(top + rows, image.height)
        yield slice(top, below), image.crop((0, top, image.width, below))


def visible(frame: Frame) -> Pixels:
    """The picture of a frame in RGB or mono, also where its pixels are raw ones."""
    return frame.pixels if frame.bayer is None else demosaiced(frame.pixels, frame.bayer)


def demosaiced(raw: Pixels, bayer: Bayer) -> Pixels:
    """RGB pixels of raw ones, bilinearly; the kernels of `engine/gpu` give the same ones."""
    import cv2

    code = getattr(cv2, f"COLOR_Bayer{bayer.removeprefix('bayer_').upper()}2RGB")
    return np.asarray(cv2.cvtColor(raw, code), dtype=np.uint8)


def eight_bits(wide: npt.NDArray[np.uint16], bits: int) -> Pixels:
    """16 bits → 8, from the full range of the lower `bits`; what is above it is white."""
    import cv2

    if bits > 12:
        return _scale(bits)[wide]
    # As exact as the table up to here, and several times faster.
    return np.asarray(cv2.convertScaleAbs(wide, alpha=255 / ((1 << bits) - 1)), dtype=np.uint8)


def _narrowed(wide: npt.NDArray[np.uint16], bits: int | None, significant: int) -> Decoded:
    """16 bits → 8, from the full range of those bits that are significant."""
    largest = int(wide.max())
    note = None
    if bits is not None:
        if largest >= 1 << bits:
            raise _UnfitError(
                f"has a pixel of {largest}, which is more than {bits} bits hold; "
                "leave bits out where the upper ones are used"
            )
    elif significant < 16:
        # Whether they are the upper bits or the lower ones, no metadata say.
        unused = (1 << (16 - significant)) - 1
        is_lower = largest < 1 << significant and bool(np.bitwise_or.reduce(wide, None) & unused)
        bits = significant if is_lower else 16
    else:
        bits, note = 16, _note(largest.bit_length())
    pixels, scale = np.empty(wide.shape, np.uint8), _scale(bits)
    rows = max(1, _STRIP // wide.shape[1])
    for top in range(0, len(wide), rows):  # since numpy makes large numbers of what is looked up
        pixels[top : top + rows] = scale[wide[top : top + rows]]
    return Decoded(pixels=pixels, note=note)


def _note(used: int) -> str | None:
    if used == 0:
        return None
    used = max(8, used + used % 2)
    if used == 16:
        return None
    return (
        f"no pixel of 16 bits uses more than {used}: if the camera gives {used} bits, say so "
        f"(bits: {used}), or most grey levels are lost"
    )


@cache
def _scale(bits: int) -> Pixels:
    """For each value of 16 bits, its place among 256 levels when `bits` is the full range."""
    full = (1 << bits) - 1
    values = np.arange(1 << 16, dtype=np.uint32).clip(0, full)
    return np.asarray((values * 255 + full // 2) // full, dtype=np.uint8)
