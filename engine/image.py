"""Image files and encoded bytes → `Pixels`, whatever form they come in."""

import io
import warnings
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from engine.errors import ImageError
from engine.frame import Pixels

MAX_PIXELS: Final = 100_000_000
"""Images larger than this are refused before they are decoded (decompression bombs)."""

SUFFIXES: Final = frozenset(
    {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

_SIXTEEN_BIT = {"I", "I;16", "I;16B", "I;16L", "I;16N"}


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """The upright image in file `path`; see `decode_image`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(str(path), f"cannot be read ({error.strerror})") from error
    return decode_image(data, source=str(path), max_pixels=max_pixels)


def decode_image(data: bytes, *, source: str, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode one image: `(H, W)` uint8 for grey images, `(H, W, 3)` uint8 RGB for all others.

    EXIF rotation is applied, palettes are resolved, alpha is ignored, 16-bit grey is scaled from
    its full range to 8 bits. Raises `ImageError`, naming `source`, for anything else.
    """
    if not data:
        raise ImageError(source, "is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged metadata, which matters to nobody here, and of many pixels,
            # which are counted below.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                _refuse_larger(image, max_pixels, source)
                ImageOps.exif_transpose(image, in_place=True)
                return _to_pixels(image)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(source, "is not an image in a known format") from error
    except Image.DecompressionBombError as error:
        raise ImageError(source, f"more than {max_pixels} pixels: refused") from error
    except Exception as error:
        # Whatever Pillow's plugins raise for damaged data, struct.error included.
        raise ImageError(source, f"is damaged ({error})") from error


def _refuse_larger(image: Image.Image, max_pixels: int, source: str) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(source, f"{width}×{height} pixels are more than the {max_pixels} allowed")


def _to_pixels(image: Image.Image) -> Pixels:
    if image.mode in _SIXTEEN_BIT:
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        return np.asarray((wide + 128) // 257, dtype=np.uint8)
    if image.mode in {"L", "1", "LA"}:
        return np.array(image if image.mode == "L" else image.convert("L"))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range; save 8 or 16 bits")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def images_below(folder: Path) -> list[Path]:
    """All image files below `folder`, by suffix, in one order on every file system."""
    return sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
    )
