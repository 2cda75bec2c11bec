"""Pictures that show the same part twice.

All good parts of one kind look alike, so the usual perceptual hashes call every two of them
duplicates: by dHash, two different MVTec bottles are 2-11 bits of 256 apart and one bottle saved
twice as JPEG is 4. What tells parts apart is fine detail, and how each picture differs from the
*average* of its set. So a picture's fingerprint is its grey values at 64×64, less their blur, at
unit length, and two pictures look alike when

- their fingerprints, each less the set's average, have a cosine of at least 0.9 (different
  bottles: 0.83 at the 95th percentile; the same one saved as JPEG, with noise of 4 grey levels
  or 10 % brighter: above 0.94), or
- the fingerprints themselves have one of at least 0.998: a standing belt, whose average is
  every picture at once.
"""

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from engine.frame import Pixels

Fingerprint = npt.NDArray[np.float32]
"""float32 `(4096,)`, of unit length, or all zero for a picture of one grey value."""

_SIDE: Final = 64
_BLUR: Final = 2.0
_ALIKE: Final = 0.998
_ALIKE_BESIDE_AVERAGE: Final = 0.9
_BLOCK: Final = 512
_FEWEST: Final = 8


def fingerprint(pixels: Pixels) -> Fingerprint:
    """The fine detail of a picture, `(H, W)` or `(H, W, 3)` uint8 RGB of any size."""
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    return _unit((small - cv2.GaussianBlur(small, (0, 0), _BLUR)).reshape(1, -1)).ravel()


def likeness(one: Fingerprint, others: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """How much `one` looks like each of `others`, `(n, 4096)`: a cosine beside their average.

    Of fewer than eight there is no average to speak of: then it is that of the fingerprints.
    """
    average = others.mean(axis=0) if len(others) >= _FEWEST else np.float32(0)
    return np.asarray(_unit(others - average) @ _unit((one - average)[None])[0])


def alike(one: Fingerprint, others: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which of `others`, `(n, 4096)`, show the same part as `one`."""
    beside = _ALIKE_BESIDE_AVERAGE if len(others) >= _FEWEST else _ALIKE
    return (others @ one >= _ALIKE) | (likeness(one, others) >= beside)


def look_alikes(fingerprints: Sequence[Fingerprint]) -> int:
    """How many pictures look like one that came before them.

    A part photographed five times counts four. Takes n² / 2 products of 4096 numbers: seconds
    for thousands of pictures.
    """
    if len(fingerprints) < 2:
        return 0
    plain = np.stack(fingerprints)
    beside = _unit(plain - plain.mean(axis=0))
    found = 0
    for start in range(0, len(plain), _BLOCK):
        stop = start + _BLOCK
        alike = (plain[start:stop] @ plain[:stop].T >= _ALIKE) | (
            beside[start:stop] @ beside[:stop].T >= _ALIKE_BESIDE_AVERAGE
        )
        found += int(np.tril(alike, k=start - 1).any(axis=1).sum())
    return found


def _unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    # Below this, what is left is rounding: no detail, so like nothing.
    return np.asarray(np.where(lengths > 1e-3, rows / np.maximum(lengths, 1e-3), 0), np.float32)
